'use strict';

// Event hubs, and the one that is built into the hub.
const assert = require('node:assert/strict');
const { describe, it } = require('node:test');
const { EventHubBufferedProducerClient, EventHubConsumerClient, EventHubProducerClient, earliestEventPosition, latestEventPosition } =
  require('@azure/event-hubs');
const WebSocket = require('ws');
const { Message } = require('azure-iot-common');
const { Http } = require('azure-iot-device-http');
const {
  Inbox, closing, connect, deviceString, eventsString, fields, host, newDevice, serviceBusString, setting, suite, until,
} = require('./support.js');

const noRetry = { retryOptions: { maxRetries: 0 } };

const producer = (t, name) => closing(t, new EventHubProducerClient(serviceBusString, name, noRetry));
const consumer = (t, name, group = '$Default') => closing(t, new EventHubConsumerClient(group, serviceBusString, name, noRetry));

// read collects what comes from one partition; errors end up beside the events.
function read(t, from, partition, options) {
  const inbox = new Inbox();
  const subscription = from.subscribe(partition, {
    processEvents: async (events) => events.forEach((event) => inbox.put(event)),
    processError: async (error) => inbox.put({ error }),
  }, { startPosition: earliestEventPosition, maxBatchSize: 1, ...options });
  closing(t, subscription);
  return inbox;
}

const event = ({ error }) => !error;
const failure = ({ error }) => error;

async function bodies(inbox, count) {
  const got = [];
  while (got.length < count) got.push((await inbox.next(`event ${got.length + 1}`, event)).body);
  return got;
}

describe('Event Hubs', suite, () => {
  it('describes an event hub and its partitions', async (t) => {
    const to = producer(t, 'properties');
    const { name, partitionIds, createdOn } = await to.getEventHubProperties();
    assert.equal(name, 'properties');
    assert.deepEqual(partitionIds, ['0', '1', '2']);
    assert.ok(createdOn <= Date.now());
    assert.deepEqual(await to.getPartitionIds(), partitionIds);
    const empty = await to.getPartitionProperties('1');
    assert.equal(empty.isEmpty, true);
    assert.equal(empty.eventHubName, 'properties');
    await to.sendBatch([{ body: 1 }, { body: 2 }], { partitionId: '1' });
    const filled = await to.getPartitionProperties('1');
    assert.equal(filled.isEmpty, false);
    assert.equal(filled.lastEnqueuedSequenceNumber - filled.beginningSequenceNumber, 1);
    assert.ok(Math.abs(filled.lastEnqueuedOnUtc - Date.now()) < 60_000);
  });

  it('carries an event with its properties', async (t) => {
    const sent = {
      body: { degrees: 21, text: 'Grüße' }, messageId: 'm1', correlationId: 'c1', contentType: 'application/json',
      properties: { text: 'x', number: 1.5, yes: true },
    };
    await producer(t, 'events-message').sendBatch([sent]);
    const got = await read(t, consumer(t, 'events-message'), '0').next('the event', event);
    for (const name of ['body', 'messageId', 'correlationId', 'contentType']) assert.deepEqual(got[name], sent[name], name);
    assert.deepEqual({ ...got.properties }, sent.properties);
    assert.ok(Math.abs(got.enqueuedTimeUtc - Date.now()) < 60_000);
    assert.equal(got.sequenceNumber, 0);
  });

  it('starts where the consumer says', async (t) => {
    const to = producer(t, 'positions');
    for (let body = 0; body < 5; body++) await to.sendBatch([{ body }]);
    const first = consumer(t, 'positions');
    const all = read(t, first, '0');
    const events = [];
    for (let i = 0; i < 5; i++) events.push(await all.next(`event ${i}`, event));
    await first.close();
    assert.deepEqual(events.map(({ body }) => body), [0, 1, 2, 3, 4]);
    for (const [startPosition, want] of [
      [{ sequenceNumber: events[2].sequenceNumber }, [3, 4]],
      [{ sequenceNumber: events[2].sequenceNumber, isInclusive: true }, [2, 3, 4]],
      [{ offset: events[3].offset }, [4]],
      [{ offset: events[3].offset, isInclusive: true }, [3, 4]],
      [{ enqueuedOn: new Date(events[0].enqueuedTimeUtc.getTime() - 1) }, [0, 1, 2, 3, 4]],
    ]) {
      const from = consumer(t, 'positions');
      assert.deepEqual(await bodies(read(t, from, '0', { startPosition }), want.length), want, JSON.stringify(startPosition));
      await from.close();
    }
    const latest = read(t, consumer(t, 'positions'), '0', { startPosition: latestEventPosition });
    let body = 100;
    await until('a new event comes', async () => { // the link may not be there at once
      await to.sendBatch([{ body: body++ }]);
      return latest.length > 0;
    });
    assert.ok((await latest.next('a new event', event)).body >= 100);
  });

  it('keeps what has one key in one partition, in order', async (t) => {
    const to = producer(t, 'keys');
    for (let i = 0; i < 10; i++) {
      for (const partitionKey of ['a', 'b', 'c']) await to.sendBatch([{ body: { partitionKey, i } }], { partitionKey });
    }
    const inbox = new Inbox();
    const subscription = consumer(t, 'keys').subscribe({
      processEvents: async (events, { partitionId }) =>
        events.forEach((one) => inbox.put({ ...one.body, key: one.partitionKey, partitionId })),
      processError: async (error) => inbox.put({ error }),
    }, { startPosition: earliestEventPosition });
    closing(t, subscription);
    const last = {};
    const partitions = {};
    for (let n = 0; n < 30; n++) {
      const { partitionKey, key, partitionId, i } = await inbox.next('an event', event);
      assert.equal(key, partitionKey);
      assert.equal(i, (last[key] ?? -1) + 1, `order of ${key}`);
      assert.equal(partitions[key] ??= partitionId, partitionId);
      last[key] = i;
    }
  });

  it('takes batches as large as the link allows', async (t) => {
    const to = producer(t, 'batches');
    const batch = await to.createBatch();
    let count = 0;
    while (batch.tryAdd({ body: Buffer.alloc(20_000, count) })) count += 1;
    assert.ok(count > 10 && batch.maxSizeInBytes >= 256 * 1024);
    await to.sendBatch(batch);
    const got = await bodies(read(t, consumer(t, 'batches'), '0', { skipParsingBodyAsJson: true }), count);
    got.forEach((body, i) => assert.equal(body[0], i));
    await assert.rejects(to.sendBatch([{ body: Buffer.alloc(batch.maxSizeInBytes + 1) }]), { code: 'MessageTooLargeError' });
  });

  it('lets a producer collect events by itself', async (t) => {
    const options = { ...noRetry, maxWaitTimeInMs: 50, onSendEventsErrorHandler: async () => {} };
    const to = new EventHubBufferedProducerClient(serviceBusString, 'buffered', options);
    closing(t, to);
    for (let body = 0; body < 5; body++) await to.enqueueEvent({ body });
    await to.flush();
    assert.deepEqual(await bodies(read(t, consumer(t, 'buffered'), '0'), 5), [0, 1, 2, 3, 4]);
  });

  it('gives every consumer group all events', async (t) => {
    await producer(t, 'groups').sendBatch([{ body: 1 }, { body: 2 }]);
    for (const group of ['$Default', 'second']) {
      assert.deepEqual(await bodies(read(t, consumer(t, 'groups', group), '0'), 2), [1, 2]);
    }
  });

  it('lets five consumers of a group read side by side, and no sixth', async (t) => {
    await producer(t, 'shared').sendBatch([{ body: 1 }]);
    const readers = [1, 2, 3, 4, 5].map(() => read(t, consumer(t, 'shared'), '0'));
    for (const inbox of readers) assert.deepEqual(await bodies(inbox, 1), [1]);
    const { error } = await read(t, consumer(t, 'shared'), '0').next('the refusal', failure);
    assert.equal(error.code, 'QuotaExceededError');
  });

  it('gives a partition to the owner with the highest level', async (t) => {
    const to = producer(t, 'owners');
    await to.sendBatch([{ body: 1 }]);
    const first = read(t, consumer(t, 'owners'), '0', { ownerLevel: 1 });
    assert.deepEqual(await bodies(first, 1), [1]);
    const second = read(t, consumer(t, 'owners'), '0', { ownerLevel: 2 });
    assert.deepEqual(await bodies(second, 1), [1]);
    const { error } = await first.next('the end of the first', failure);
    assert.equal(error.code, 'ReceiverDisconnectedError');
    const lower = read(t, consumer(t, 'owners'), '0', { ownerLevel: 0 });
    assert.equal((await lower.next('the refusal', failure)).error.code, 'ReceiverDisconnectedError');
    await to.sendBatch([{ body: 2 }]);
    assert.deepEqual(await bodies(second, 1), [2]);
  });

  it('says what is newest in a partition with each event', async (t) => {
    const to = producer(t, 'tracked');
    await to.sendBatch([{ body: 1 }, { body: 2 }]);
    const from = consumer(t, 'tracked');
    const seen = new Inbox();
    const subscription = from.subscribe('0', {
      processEvents: async (events, context) => events.length && seen.put({ ...context.lastEnqueuedEventProperties }),
      processError: async (error) => seen.put({ error }),
    }, { startPosition: earliestEventPosition, maxBatchSize: 1, trackLastEnqueuedEventProperties: true });
    closing(t, subscription);
    assert.equal((await seen.next('an event', event)).sequenceNumber, 1);
  });

  it('works over WebSockets', async (t) => {
    const options = { ...noRetry, webSocketOptions: { webSocket: WebSocket } };
    await closing(t, new EventHubProducerClient(serviceBusString, 'events-websocket', options)).sendBatch([{ body: 1 }]);
    const from = closing(t, new EventHubConsumerClient('$Default', serviceBusString, 'events-websocket', options));
    assert.deepEqual(await bodies(read(t, from, '0'), 1), [1]);
  });

  it("works without TLS, by the connection string of the vendor's own emulator", async (t) => {
    const text = setting('SERVICEBUS_PLAIN_CONNECTION_STRING');
    await closing(t, new EventHubProducerClient(text, 'events-plain', noRetry)).sendBatch([{ body: 1 }]);
    const from = closing(t, new EventHubConsumerClient('$Default', text, 'events-plain', noRetry));
    assert.deepEqual(await bodies(read(t, from, '0'), 1), [1]);
  });

  it('refuses a wrong key', async (t) => {
    const { SharedAccessKeyName } = fields(serviceBusString);
    const text = `Endpoint=sb://${host}/;SharedAccessKeyName=${SharedAccessKeyName};SharedAccessKey=d3Jvbmc=`;
    await assert.rejects(closing(t, new EventHubProducerClient(text, 'properties', noRetry)).getEventHubProperties(), { code: 'UnauthorizedError' });
  });

  it('says that an event hub, a partition or a consumer group does not exist', async (t) => {
    await assert.rejects(producer(t, 'nothing').getEventHubProperties(), { code: 'MessagingEntityNotFoundError' });
    await assert.rejects(producer(t, 'properties').sendBatch([{ body: 1 }], { partitionId: '7' }));
    const inbox = read(t, consumer(t, 'properties', 'nobody'), '0');
    assert.equal((await inbox.next('the refusal', failure)).error.code, 'MessagingEntityNotFoundError');
  });
});

describe('the built-in endpoint', suite, () => {
  const builtIn = (t, group = '$Default') => closing(t, new EventHubConsumerClient(group, eventsString, noRetry));

  async function device(t) {
    const identity = await newDevice(t);
    return { ...identity, client: await connect(t, Http, deviceString(identity)) };
  }

  it('describes itself', async (t) => {
    const from = builtIn(t);
    const { name, partitionIds } = await from.getEventHubProperties();
    assert.equal(name, fields(eventsString).EntityPath);
    assert.deepEqual(partitionIds, ['0', '1']);
  });

  it('keeps all events of a device in one partition', async (t) => {
    const { deviceId, client } = await device(t);
    for (let i = 0; i < 5; i++) await client.sendEvent(new Message(`${i}`));
    const inbox = new Inbox();
    const subscription = builtIn(t).subscribe({
      processEvents: async (events, { partitionId }) => events.forEach((one) => inbox.put({ one, partitionId })),
      processError: async (error) => inbox.put({ error }),
    }, { startPosition: earliestEventPosition, maxBatchSize: 1, skipParsingBodyAsJson: true });
    closing(t, subscription);
    const partitions = new Set();
    for (let i = 0; i < 5; i++) {
      const { one, partitionId } = await inbox.next(`event ${i}`, (item) =>
        event(item) && item.one.systemProperties['iothub-connection-device-id'] === deviceId);
      assert.equal(one.body.toString(), `${i}`);
      partitions.add(partitionId);
    }
    assert.equal(partitions.size, 1);
  });

  it('gives each consumer group all events', async (t) => {
    const { deviceId, client } = await device(t);
    await client.sendEvent(new Message('for all'));
    for (const group of ['$Default', 'second']) {
      const from = builtIn(t, group);
      const inbox = new Inbox();
      const subscription = from.subscribe({
        processEvents: async (events) => events.forEach((one) => inbox.put(one)),
        processError: async (error) => inbox.put({ error }),
      }, { startPosition: earliestEventPosition, maxBatchSize: 1 });
      closing(t, subscription);
      await inbox.next(`the event in ${group}`, (one) => event(one) && one.systemProperties['iothub-connection-device-id'] === deviceId);
    }
  });

  it('can only be read', async (t) => {
    const to = closing(t, new EventHubProducerClient(eventsString, noRetry));
    await assert.rejects(to.sendBatch([{ body: 'x' }]));
  });
});
