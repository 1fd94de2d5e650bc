'use strict';

// Service Bus queues and topics, and device-to-cloud messages that are routed to
// them.
const assert = require('node:assert/strict');
const { after, describe, it } = require('node:test');
const { setTimeout: sleep } = require('node:timers/promises');
const { Message } = require('azure-iot-common');
const { Mqtt } = require('azure-iot-device-mqtt');
const { ServiceBusClient } = require('@azure/service-bus');
const Long = require('long');
const WebSocket = require('ws');
const { Inbox, closing, connect, deviceString, fields, newDevice, serviceBusString, setting, suite, unique, until } = require('./support.js');

const noRetry = { retryOptions: { maxRetries: 0 } };
const client = new ServiceBusClient(serviceBusString, noRetry);

const sender = (t, entity) => closing(t, client.createSender(entity));
const receiver = (t, queue, options) => closing(t, client.createReceiver(queue, options));
const deadLetters = (t, queue) => receiver(t, queue, { subQueueType: 'deadLetter' });

// take receives exactly so many messages.
async function take(from, count = 1) {
  const messages = [];
  await until(`${count} messages have come`, async () => {
    messages.push(...await from.receiveMessages(count - messages.length, { maxWaitTimeInMs: 3000 }));
    return messages.length === count;
  });
  return messages;
}

async function none(from) {
  assert.deepEqual(await from.receiveMessages(1, { maxWaitTimeInMs: 300 }), []);
}

const bodies = (messages) => messages.map(({ body }) => body);

describe('Service Bus', suite, () => {
  after(() => client.close());

  it('carries a message with all its properties', async (t) => {
    const sent = {
      body: { text: 'Grüße', list: [1, null] }, messageId: 'message-1', correlationId: 'correlation-1', contentType: 'application/json',
      subject: 'greeting', to: 'somebody', replyTo: 'us', replyToSessionId: 'session', partitionKey: 'key', timeToLive: 600_000,
      applicationProperties: { text: 'x', number: 1.5, integer: 7, yes: true, when: new Date(1_700_000_000_000), nothing: null },
    };
    await sender(t, 'message').sendMessages(sent);
    const from = receiver(t, 'message');
    const [got] = await take(from);
    for (const name of Object.keys(sent).filter((key) => key !== 'applicationProperties')) assert.deepEqual(got[name], sent[name], name);
    assert.equal(Number(got.applicationProperties.when), 1_700_000_000_000);
    for (const name of ['text', 'number', 'integer', 'yes', 'nothing']) {
      assert.equal(got.applicationProperties[name], sent.applicationProperties[name], name);
    }
    assert.equal(got.sequenceNumber.toString(), '1');
    assert.equal(got.deliveryCount, 0);
    assert.equal(got.state, 'active');
    assert.ok(Math.abs(got.enqueuedTimeUtc - Date.now()) < 60_000);
    assert.equal(got.expiresAtUtc - got.enqueuedTimeUtc, 600_000);
    assert.ok(got.lockedUntilUtc > Date.now());
    assert.ok(got.lockToken);
    await from.completeMessage(got);
  });

  it('carries bodies of all kinds', async (t) => {
    const to = sender(t, 'message-bodies');
    const from = receiver(t, 'message-bodies', { receiveMode: 'receiveAndDelete' });
    for (const body of ['text', 42, true, null, [1, 'two'], { a: { b: 1 } }, Buffer.from([0, 1, 255])]) {
      await to.sendMessages({ body });
      assert.deepEqual((await take(from))[0].body, body);
    }
    for (const [bodyType, body] of [['value', 'x'], ['sequence', [[1, 2]]], ['data', Buffer.from('raw')]]) {
      await to.sendMessages({ bodyType, body });
      const [got] = await take(from);
      assert.equal(got._rawAmqpMessage.bodyType, bodyType);
    }
  });

  it('completes a message under lock', async (t) => {
    await sender(t, 'complete').sendMessages({ body: 'x' });
    const from = receiver(t, 'complete');
    const [message] = await take(from);
    await none(receiver(t, 'complete')); // nobody else sees it
    await from.completeMessage(message);
    await none(from);
    await assert.rejects(from.completeMessage(message));
  });

  it('receives and deletes in one step', async (t) => {
    await sender(t, 'receive-and-delete').sendMessages([{ body: 1 }, { body: 2 }]);
    const from = receiver(t, 'receive-and-delete', { receiveMode: 'receiveAndDelete' });
    assert.deepEqual(bodies(await take(from, 2)), [1, 2]);
    assert.deepEqual(await from.peekMessages(10), []);
  });

  it('delivers an abandoned message again, with what the receiver changed', async (t) => {
    await sender(t, 'abandon').sendMessages({ body: 'x', applicationProperties: { a: 1 } });
    const from = receiver(t, 'abandon');
    const [first] = await take(from);
    await from.abandonMessage(first, { b: 'new' });
    const [second] = await take(from);
    assert.equal(second.deliveryCount, 1);
    assert.deepEqual({ ...second.applicationProperties }, { a: 1, b: 'new' });
    await from.completeMessage(second);
  });

  it('dead-letters a message that was delivered too often', async (t) => {
    await sender(t, 'max-delivery').sendMessages({ body: 'x', messageId: 'poison' });
    const from = receiver(t, 'max-delivery');
    for (let i = 0; i < 3; i++) await from.abandonMessage((await take(from))[0]);
    await none(from);
    const [dead] = await take(deadLetters(t, 'max-delivery'));
    assert.equal(dead.messageId, 'poison');
    assert.equal(dead.deadLetterReason, 'MaxDeliveryCountExceeded');
  });

  it('defers a message, to be received by its number alone', async (t) => {
    await sender(t, 'defer').sendMessages([{ body: 'later' }, { body: 'now' }]);
    const from = receiver(t, 'defer');
    const [later] = await take(from);
    await from.deferMessage(later, { why: 'not yet' });
    const [now] = await take(from);
    assert.equal(now.body, 'now');
    await from.completeMessage(now);
    await none(from);
    const [deferred] = await from.receiveDeferredMessages([later.sequenceNumber]);
    assert.equal(deferred.body, 'later');
    assert.equal(deferred.applicationProperties.why, 'not yet');
    assert.equal(deferred.state, 'deferred');
    await from.completeMessage(deferred);
    assert.deepEqual(await from.peekMessages(1), []);
  });

  it('dead-letters a message with a reason, and gives it back from there', async (t) => {
    await sender(t, 'dead-letter').sendMessages({ body: 'bad' });
    const from = receiver(t, 'dead-letter');
    await from.deadLetterMessage((await take(from))[0], {
      deadLetterReason: 'broken', deadLetterErrorDescription: 'it has a hole', extra: 'property',
    });
    const graveyard = deadLetters(t, 'dead-letter');
    const [dead] = await take(graveyard);
    assert.equal(dead.deadLetterReason, 'broken');
    assert.equal(dead.deadLetterErrorDescription, 'it has a hole');
    assert.equal(dead.applicationProperties.extra, 'property');
    await graveyard.completeMessage(dead);
    await none(graveyard);
  });

  it('shows messages without locking them', async (t) => {
    await sender(t, 'peek').sendMessages([1, 2, 3, 4, 5].map((body) => ({ body })));
    const from = receiver(t, 'peek');
    const seen = await from.peekMessages(3);
    assert.deepEqual(bodies(seen), [1, 2, 3]);
    assert.deepEqual(bodies(await from.peekMessages(10)), [4, 5]); // it goes on
    assert.deepEqual(bodies(await from.peekMessages(2, { fromSequenceNumber: seen[1].sequenceNumber })), [2, 3]);
    assert.deepEqual(bodies(await take(from, 5)), [1, 2, 3, 4, 5]);
  });

  it('keeps a lock that is renewed, and ends one that is not', async (t) => {
    await sender(t, 'lock').sendMessages({ body: 'x' });
    const holder = receiver(t, 'lock', { maxAutoLockRenewalDurationInMs: 0 });
    const other = receiver(t, 'lock', { maxAutoLockRenewalDurationInMs: 0 });
    const [message] = await take(holder);
    await sleep(3000);
    const until5 = message.lockedUntilUtc;
    assert.ok(await holder.renewMessageLock(message) > until5);
    await sleep(3000);
    await none(other); // 6 s are more than the 5 s of emulator.yaml
    const [again] = await take(other);
    assert.equal(again.deliveryCount, 1);
    await assert.rejects(holder.completeMessage(message), { code: 'MessageLockLost' });
    await assert.rejects(holder.renewMessageLock(message));
    await other.completeMessage(again);
  });

  it('delivers a scheduled message at its time', async (t) => {
    const to = sender(t, 'schedule');
    const from = receiver(t, 'schedule');
    const due = new Date(Date.now() + 1500);
    const [number] = await to.scheduleMessages({ body: 'later' }, due);
    await to.sendMessages({ body: 'also later', scheduledEnqueueTimeUtc: due });
    const [peeked] = await from.peekMessages(1);
    assert.equal(peeked.state, 'scheduled');
    assert.equal(peeked.sequenceNumber.toString(), number.toString());
    await none(from);
    const got = await take(from, 2);
    assert.ok(Date.now() >= due);
    assert.deepEqual(bodies(got).sort(), ['also later', 'later']);
  });

  it('cancels scheduled messages', async (t) => {
    const to = sender(t, 'cancel');
    const numbers = await to.scheduleMessages([{ body: 1 }, { body: 2 }], new Date(Date.now() + 3_600_000));
    assert.equal(numbers.length, 2);
    await to.cancelScheduledMessages(numbers[0]);
    const from = receiver(t, 'cancel');
    assert.deepEqual(bodies(await from.peekMessages(10)), [2]);
    await to.cancelScheduledMessages(numbers[1]);
    assert.deepEqual(await from.peekMessages(10, { fromSequenceNumber: numbers[0] }), []);
  });

  it('drops duplicates', async (t) => {
    const to = sender(t, 'duplicates');
    await to.sendMessages({ body: 'first', messageId: 'a' });
    await to.sendMessages({ body: 'again', messageId: 'a' });
    await to.sendMessages({ body: 'other', messageId: 'b' });
    const from = receiver(t, 'duplicates', { receiveMode: 'receiveAndDelete' });
    assert.deepEqual(bodies(await take(from, 2)), ['first', 'other']);
    await to.sendMessages({ body: 'after it was received', messageId: 'a' });
    await none(from);
  });

  it('takes batches as large as the link allows, and refuses more', async (t) => {
    const to = sender(t, 'batch');
    const batch = await to.createMessageBatch();
    assert.ok(batch.maxSizeInBytes >= 256 * 1024);
    let count = 0;
    while (batch.tryAddMessage({ body: Buffer.alloc(10_000, count) })) count += 1;
    assert.ok(count > 20);
    await to.sendMessages(batch);
    const from = receiver(t, 'batch', { receiveMode: 'receiveAndDelete' });
    const got = await take(from, count);
    got.forEach(({ body }, i) => assert.equal(body[0], i));
    await assert.rejects(to.sendMessages({ body: Buffer.alloc(batch.maxSizeInBytes + 1) }), { code: 'MessageSizeExceeded' });
  });

  it('dead-letters what expires where the queue says so', async (t) => {
    await sender(t, 'expiry').sendMessages([{ body: 'short', timeToLive: 500 }, { body: 'long' }]);
    const [dead] = await take(deadLetters(t, 'expiry'));
    assert.equal(dead.body, 'short');
    assert.equal(dead.deadLetterReason, 'TTLExpiredException');
    assert.deepEqual(bodies(await take(receiver(t, 'expiry'))), ['long']);
  });

  it('drops what expires where the queue does not say so', async (t) => {
    await sender(t, 'expiry-dropped').sendMessages({ body: 'short', timeToLive: 300 });
    await sleep(500);
    await none(receiver(t, 'expiry-dropped'));
    await none(deadLetters(t, 'expiry-dropped'));
  });

  it('pushes messages to a subscriber, and gives back what it fails on', async (t) => {
    const from = receiver(t, 'subscribe');
    const inbox = new Inbox();
    const subscription = from.subscribe({
      processMessage: async (message) => {
        inbox.put([message.body, message.deliveryCount]);
        if (message.body === 'fails at first' && message.deliveryCount === 0) throw new Error('on purpose');
      },
      processError: async () => {},
    }, { maxConcurrentCalls: 3 });
    closing(t, subscription);
    const to = sender(t, 'subscribe');
    await to.sendMessages({ body: 'fine' });
    await inbox.next('the one', ([body]) => body === 'fine');
    await until('it is completed', async () => (await from.peekMessages(1, { fromSequenceNumber: Long.ONE })).length === 0);
    // The SDK's AMQP library would send two outcomes at once as one.
    await to.sendMessages({ body: 'fails at first' });
    await inbox.next('the other', ([body, count]) => body !== 'fine' && count === 0);
    await inbox.next('the other again', ([body, count]) => body !== 'fine' && count === 1);
    await until('all is completed', async () => (await from.peekMessages(1, { fromSequenceNumber: Long.ONE })).length === 0);
  });

  it('iterates over messages in order', async (t) => {
    const count = 30;
    await sender(t, 'iterate').sendMessages(Array.from({ length: count }, (_, body) => ({ body })));
    const from = receiver(t, 'iterate');
    let want = 0;
    for await (const message of from.getMessageIterator()) {
      assert.equal(message.body, want);
      await from.completeMessage(message);
      want += 1;
      if (want === count) break;
    }
  });

  it('copies a message of a topic to each subscription', async (t) => {
    await sender(t, 'topic').sendMessages([{ body: 1 }, { body: 2 }]);
    for (const name of ['one', 'two']) {
      const from = closing(t, client.createReceiver('topic', name));
      const got = await take(from, 2);
      assert.deepEqual(bodies(got), [1, 2]);
      await from.completeMessage(got[0]);
      await from.abandonMessage(got[1]);
    }
    // It was delivered once, which is as often as subscription two allows.
    const [dead] = await take(closing(t, client.createReceiver('topic', 'two', { subQueueType: 'deadLetter' })));
    assert.equal(dead.body, 2);
    assert.equal((await take(closing(t, client.createReceiver('topic', 'one'))))[0].deliveryCount, 1);
  });

  it('works over WebSockets', async (t) => {
    const over = closing(t, new ServiceBusClient(serviceBusString, { ...noRetry, webSocketOptions: { webSocket: WebSocket } }));
    await closing(t, over.createSender('websocket')).sendMessages({ body: 'x' });
    const from = closing(t, over.createReceiver('websocket'));
    await from.completeMessage((await take(from))[0]);
  });

  it("works without TLS, by the connection string of the vendor's own emulator", async (t) => {
    const plain = closing(t, new ServiceBusClient(setting('SERVICEBUS_PLAIN_CONNECTION_STRING'), noRetry));
    await closing(t, plain.createSender('plain')).sendMessages({ body: 'x' });
    const from = closing(t, plain.createReceiver('plain'));
    await from.completeMessage((await take(from))[0]);
  });

  it('refuses a wrong key', async (t) => {
    const { Endpoint, SharedAccessKeyName } = fields(serviceBusString);
    const stranger = closing(t, new ServiceBusClient(
      `Endpoint=${Endpoint};SharedAccessKeyName=${SharedAccessKeyName};SharedAccessKey=d3Jvbmc=`, noRetry));
    await assert.rejects(closing(t, stranger.createSender('message')).sendMessages({ body: 'x' }), { code: 'UnauthorizedAccess' });
  });

  it('says that an entity does not exist', async (t) => {
    await assert.rejects(sender(t, unique('nothing')).sendMessages({ body: 'x' }), { code: 'MessagingEntityNotFound' });
    await assert.rejects(receiver(t, unique('nothing')).receiveMessages(1, { maxWaitTimeInMs: 2000 }), { code: 'MessagingEntityNotFound' });
  });

  it('gets the telemetry that is routed to it, stamped by the hub', async (t) => {
    const device = await newDevice(t);
    const message = new Message(JSON.stringify({ degrees: 21 }));
    message.messageId = 'telemetry-1';
    message.contentType = 'application/json';
    message.contentEncoding = 'utf-8';
    message.properties.add('kind', 'report');
    await (await connect(t, Mqtt, deviceString(device))).sendEvent(message);
    const [got] = await take(receiver(t, 'routed', { receiveMode: 'receiveAndDelete' }));
    assert.deepEqual(got.body, { degrees: 21 });
    assert.equal(got.messageId, 'telemetry-1');
    assert.equal(got.contentType, 'application/json');
    const { 'iothub-connection-device-id': id, 'iothub-connection-auth-generation-id': generation, kind } = got.applicationProperties;
    assert.deepEqual([id, generation, kind], [device.deviceId, device.generationId, 'report']);
    assert.equal(JSON.parse(got.applicationProperties['iothub-connection-auth-method']).scope, 'device');
  });
});
