'use strict';

// Cases of a device, the same for every protocol that can do what they are about.
// Each stands for a behaviour that the documentation of IoT Hub or of the SDK
// promises.
const assert = require('node:assert/strict');
const { X509Certificate, randomBytes, randomUUID } = require('node:crypto');
const { readFileSync } = require('node:fs');
const { join } = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');
const { after, before, describe, it } = require('node:test');
const { Client: DeviceClient } = require('azure-iot-device');
const { Message } = require('azure-iot-common');
const {
  Events, Inbox, Service, bounded, called, certificateString, connect, connectModule, deviceString, fields, host,
  hubString, newDevice, prepare, registry, setting, suite, token, unique, until,
} = require('./support.js');

// deviceCases declares the cases of one protocol. can says what the SDK does over
// it: connections, methods, twins, modules and models; settle to abandon and reject;
// batch to send several messages at once.
module.exports = function deviceCases(name, transport, can) {
  const service = new Service();
  const events = new Events();

  describe(name, suite, () => {
    before(async () => {
      events.open();
      await service.open();
    });
    after(() => Promise.all([service.close(), events.close()]));

    const context = { can, events, service, transport };
    accessCases(context);
    certificateCases(context);
    telemetryCases(context);
    cloudToDeviceCases(context);
    if (can.settle) settlementCases(context);
    if (can.connections) connectionCases(context);
    if (can.methods) methodCases(context);
    if (can.twins) twinCases(context);
    if (can.modules) moduleCases(context);
  });
};

// send sends something that proves access: some protocols connect at the first need.
function send(client, data = 'hello') {
  return client.sendEvent(new Message(data));
}

function open(t, transport, text) {
  return connect(t, transport, text).then(async (client) => {
    await send(client);
    return client;
  });
}

function accessCases({ events, transport }) {
  const refused = { name: 'UnauthorizedError' };

  it('takes the primary and the secondary key of the device', async (t) => {
    const device = await newDevice(t);
    const { primaryKey, secondaryKey } = device.authentication.symmetricKey;
    for (const key of [primaryKey, secondaryKey]) {
      const client = await open(t, transport, deviceString(device, key));
      await client.close();
      const event = await events.next(device.deviceId);
      assert.deepEqual(JSON.parse(event.systemProperties['iothub-connection-auth-method']),
        { scope: 'device', type: 'sas', issuer: 'iothub', acceptingIpFilterRule: null });
    }
  });

  it('takes a token that is signed by a policy which may connect devices', async (t) => {
    const { deviceId } = await newDevice(t);
    const { SharedAccessKeyName: policy, SharedAccessKey: key } = fields(hubString);
    const sas = token(encodeURIComponent(`${host}/devices/${deviceId}`), policy, key, 600);
    const client = prepare(t, DeviceClient.fromSharedAccessSignature(sas, transport));
    await client.open();
    await send(client);
    const event = await events.next(deviceId);
    assert.equal(JSON.parse(event.systemProperties['iothub-connection-auth-method']).scope, 'hub');
  });

  it('refuses a wrong key', async (t) => {
    const device = await newDevice(t);
    await assert.rejects(open(t, transport, deviceString(device, randomBytes(32).toString('base64'))), refused);
  });

  it('refuses a token that is over', async (t) => {
    const { deviceId, authentication } = await newDevice(t);
    const sas = token(encodeURIComponent(`${host}/devices/${deviceId}`), null, authentication.symmetricKey.primaryKey, -600);
    const client = prepare(t, DeviceClient.fromSharedAccessSignature(sas, transport));
    await assert.rejects(client.open().then(() => send(client)), refused);
  });

  it('refuses the token of another device', async (t) => {
    const [device, other] = await Promise.all([newDevice(t), newDevice(t)]);
    const text = deviceString({ ...device, authentication: other.authentication });
    await assert.rejects(open(t, transport, text), refused);
  });

  it('refuses a device that is not registered', async (t) => {
    const device = { deviceId: unique('nobody'), authentication: { symmetricKey: { primaryKey: randomBytes(32).toString('base64') } } };
    await assert.rejects(open(t, transport, deviceString(device)), refused);
  });

  it('refuses a disabled device, and takes it again once it is enabled', async (t) => {
    const device = await newDevice(t, { status: 'disabled' });
    await assert.rejects(open(t, transport, deviceString(device)), refused);
    await registry.update({ deviceId: device.deviceId, status: 'enabled' });
    await open(t, transport, deviceString(device));
  });

  it('lets a device renew its token before it is over', async (t) => {
    const device = await newDevice(t);
    const client = prepare(t, DeviceClient.fromConnectionString(deviceString(device), transport));
    // Not every transport calls back.
    client.setOptions({ tokenRenewal: { tokenValidTimeInSeconds: 4, tokenRenewalMarginInSeconds: 2 } });
    await client.open();
    await send(client, 'first token');
    await sleep(5_000); // the first token is over, and so would be the connection
    await send(client, 'a later token');
    await events.next(device.deviceId, (event) => event.body.toString() === 'a later token');
  });
}

// certificate reads one that the runner has made.
function certificate(name) {
  const file = (suffix) => readFileSync(join(setting('DEVICE_CERTIFICATES'), name + suffix), 'utf8');
  const cert = file('.pem');
  const { fingerprint, fingerprint256 } = new X509Certificate(cert);
  const hex = (text) => text.replaceAll(':', '');
  return { cert, key: file('-key.pem'), sha1: hex(fingerprint), sha256: hex(fingerprint256) };
}

async function connectCertificate(t, transport, device, { cert, key }) {
  const client = prepare(t, DeviceClient.fromConnectionString(certificateString(device), transport));
  // The HTTP transport calls back for options of the receiver alone.
  await client.setOptions({ cert, key, http: { receivePolicy: { interval: 1 } } });
  await client.open();
  await send(client);
  return client;
}

function certificateCases({ events, transport }) {
  const refused = { name: 'UnauthorizedError' };
  const thumbprints = (primaryThumbprint, secondaryThumbprint) =>
    ({ authentication: { type: 'selfSigned', x509Thumbprint: { primaryThumbprint, secondaryThumbprint } } });

  for (const kind of ['sha1', 'sha256']) {
    it(`takes a certificate by its ${kind} thumbprint`, async (t) => {
      const own = certificate('self-signed');
      const device = await newDevice(t, thumbprints(own[kind]));
      await connectCertificate(t, transport, device, own);
      const event = await events.next(device.deviceId);
      const method = JSON.parse(event.systemProperties['iothub-connection-auth-method']);
      assert.equal(method.scope, 'device');
      assert.equal(method.type, 'x509');
    });
  }

  it('takes a certificate by its secondary thumbprint', async (t) => {
    const own = certificate('self-signed');
    const device = await newDevice(t, thumbprints(certificate('other').sha1, own.sha1));
    await connectCertificate(t, transport, device, own);
  });

  it('refuses a certificate with another thumbprint', async (t) => {
    const device = await newDevice(t, thumbprints(certificate('other').sha1));
    await assert.rejects(connectCertificate(t, transport, device, certificate('self-signed')), refused);
  });

  it('refuses a certificate that is over', async (t) => {
    const own = certificate('expired');
    const device = await newDevice(t, thumbprints(own.sha1));
    await assert.rejects(connectCertificate(t, transport, device, own), refused);
  });

  it('takes a certificate that an authority of the hub has signed for the device', async (t) => {
    const device = await newDevice(t, { deviceId: 'ca-signed', authentication: { type: 'certificateAuthority' } });
    await connectCertificate(t, transport, device, certificate('ca-signed'));
  });

  it('refuses a certificate of the authority that is for another device', async (t) => {
    const device = await newDevice(t, { authentication: { type: 'certificateAuthority' } });
    await assert.rejects(connectCertificate(t, transport, device, certificate('ca-signed')), refused);
  });

  it('refuses a self-signed certificate where an authority has to sign', async (t) => {
    const device = await newDevice(t, { authentication: { type: 'certificateAuthority' } });
    await assert.rejects(connectCertificate(t, transport, device, certificate('self-signed')), refused);
  });
}

function telemetryCases({ can, events, transport }) {
  it('stamps telemetry with who sent it and when', async (t) => {
    const device = await newDevice(t);
    await open(t, transport, deviceString(device));
    const { systemProperties, enqueuedTimeUtc, sequenceNumber, offset, partitionKey } = await events.next(device.deviceId);
    assert.equal(systemProperties['iothub-connection-auth-generation-id'], device.generationId);
    assert.equal(systemProperties['iothub-message-source'], 'Telemetry');
    const late = Math.abs(Date.now() - new Date(systemProperties['iothub-enqueuedtime']));
    assert.ok(late < 60_000, `${systemProperties['iothub-enqueuedtime']} is ${late} ms away`);
    assert.ok(Math.abs(enqueuedTimeUtc - Date.now()) < 60_000);
    assert.ok(sequenceNumber >= 0 && Number(offset) >= 0);
    assert.equal(partitionKey, device.deviceId);
  });

  it('carries body and properties of a message', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const message = new Message(JSON.stringify({ temperature: 21.5, text: 'Grüße' }));
    message.messageId = 'message-1';
    message.correlationId = 'correlation-1';
    message.contentType = 'application/json';
    message.contentEncoding = 'utf-8';
    message.properties.add('alert', 'true');
    message.properties.add('path', 'a/b c&d=e%20f+g');
    await client.sendEvent(message);
    const event = await events.next(device.deviceId);
    assert.deepEqual(JSON.parse(event.body), { temperature: 21.5, text: 'Grüße' });
    assert.equal(event.messageId, 'message-1');
    assert.equal(event.correlationId, 'correlation-1');
    assert.equal(event.contentType, 'application/json');
    assert.equal(event.properties.alert, 'true');
    assert.equal(event.properties.path, 'a/b c&d=e%20f+g');
  });

  it('stamps telemetry with the component that it is from, and with the model of the device', async (t) => {
    const device = await newDevice(t);
    const client = prepare(t, DeviceClient.fromConnectionString(deviceString(device), transport));
    const modelId = 'dtmi:com:example:Thermostat;1';
    if (can.models) await client.setOptions({ modelId });
    await client.open();
    const message = new Message('21');
    message.properties.add('dt-subject', 'thermostat1');
    await client.sendEvent(message);
    const { systemProperties } = await events.next(device.deviceId);
    assert.equal(systemProperties['dt-subject'], 'thermostat1');
    assert.equal(systemProperties['dt-dataschema'], can.models ? modelId : undefined);
  });

  it('keeps a message ID that looks like a UUID a string', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const message = new Message('x');
    message.messageId = randomUUID();
    await client.sendEvent(message);
    assert.equal((await events.next(device.deviceId)).messageId, message.messageId);
  });

  it('carries bodies of any bytes, and of none', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    for (const body of [Buffer.from(Array.from({ length: 256 }, (_, i) => i)), Buffer.alloc(0), randomBytes(200_000)]) {
      await send(client, body);
      const event = await events.next(device.deviceId);
      assert.ok(body.equals(event.body), `${body.length} bytes came as ${event.body?.length}`);
    }
  });

  it('keeps the order of a device', async (t) => {
    const count = 40;
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    if (can.connections) {
      await Promise.all(Array.from({ length: count }, (_, i) => send(client, `${i}`)));
    } else {
      for (let i = 0; i < count; i++) await send(client, `${i}`);
    }
    for (let i = 0; i < count; i++) assert.equal((await events.next(device.deviceId)).body.toString(), `${i}`);
  });

  it('takes identities with all kinds of characters', async (t) => {
    const device = await newDevice(t, { deviceId: `${unique('device')}::a.b_c-d!e(f)g,h*i'j@k$l?m=n` });
    const client = await connect(t, transport, deviceString(device));
    await send(client);
    await events.next(device.deviceId);
  });

  if (!can.batch) {
    it('refuses a message of more than 256 KiB, and goes on', async (t) => {
      const device = await newDevice(t);
      const client = await connect(t, transport, deviceString(device));
      await assert.rejects(send(client, Buffer.alloc(256 * 1024 + 1)), { name: 'MessageTooLargeError' });
      await send(client, 'small');
      assert.equal((await events.next(device.deviceId)).body.toString(), 'small');
    });
    return;
  }

  it('refuses a message of more than 256 KiB', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    await assert.rejects(send(client, Buffer.alloc(256 * 1024 + 1)), { name: 'MessageTooLargeError' });
  });

  it('takes messages in a batch', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const batch = ['first', 'second', 'third'].map((data) => {
      const message = new Message(data);
      message.properties.add('place', data);
      return message;
    });
    await client.sendEventBatch(batch);
    for (const { data } of batch) {
      const event = await events.next(device.deviceId);
      assert.equal(event.body.toString(), data);
      assert.equal(event.properties.place, data);
    }
  });
}

// cloudMessage is a message whose sender wants to hear of its end.
function cloudMessage(data, ack = 'full') {
  const message = new Message(data);
  message.messageId = unique('message');
  message.ack = ack;
  return message;
}

// listen gives the messages that a device gets. Over HTTP it asks for them.
async function listen(client, can) {
  const inbox = new Inbox();
  if (!can.connections) await client.setTransportOptions({ interval: 0.3, drain: true });
  client.on('message', (message) => inbox.put(message));
  return inbox;
}

// property is that of a message, whose names HTTP writes as header fields.
function property(message, can, name) {
  return message.properties.getValue(can.connections ? name : `iothub-app-${name}`);
}

function cloudToDeviceCases({ can, service, transport }) {
  it('delivers a message with its properties, and tells its sender', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const inbox = await listen(client, can);
    const sent = cloudMessage('switch on');
    sent.correlationId = 'correlation-1';
    sent.properties.add('room', 'kitchen & hall');
    await service.send(device.deviceId, sent);

    const got = await inbox.next('a cloud-to-device message');
    assert.equal(got.getData().toString(), 'switch on');
    assert.equal(got.messageId, sent.messageId);
    assert.equal(got.correlationId, 'correlation-1');
    assert.equal(got.to.toLowerCase(), `/devices/${device.deviceId}/messages/devicebound`);
    assert.equal(property(got, can, 'room'), 'kitchen & hall');
    await client.complete(got);

    const outcome = await service.outcome(sent.messageId);
    assert.equal(outcome.statusCode, 'Success');
    assert.equal(outcome.deviceId, device.deviceId);
    assert.equal(outcome.deviceGenerationId, device.generationId);
    assert.ok(Math.abs(Date.now() - new Date(outcome.enqueuedTimeUtc)) < 60_000);
  });

  it('keeps messages for a device that is away, in order', async (t) => {
    const device = await newDevice(t);
    const sent = ['first', 'second', 'third', 'fourth'];
    for (const data of sent) await service.send(device.deviceId, new Message(data));
    assert.equal((await registry.get(device.deviceId)).responseBody.cloudToDeviceMessageCount, sent.length);
    const client = await connect(t, transport, deviceString(device));
    const inbox = await listen(client, can);
    for (const data of sent) {
      const got = await inbox.next(data);
      assert.equal(got.getData().toString(), data);
      await client.complete(got);
    }
    await until('the queue is empty', async () =>
      (await registry.get(device.deviceId)).responseBody.cloudToDeviceMessageCount === 0);
  });

  it('does not deliver a message that has expired', async (t) => {
    const device = await newDevice(t);
    const old = cloudMessage('old');
    old.expiryTimeUtc = Date.now() + 700;
    await service.send(device.deviceId, old);
    assert.equal((await service.outcome(old.messageId)).statusCode, 'Expired');
    const client = await connect(t, transport, deviceString(device));
    const inbox = await listen(client, can);
    await service.send(device.deviceId, new Message('new'));
    assert.equal((await inbox.next('the new message')).getData().toString(), 'new');
  });

  it('tells a sender only of what it asked for', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const inbox = await listen(client, can);
    const sent = ['none', 'negative', 'positive', 'full'].map((ack) => cloudMessage(ack, ack));
    for (const message of sent) await service.send(device.deviceId, message);
    for (const { data } of sent) await client.complete(await inbox.next(data));
    assert.equal((await service.outcome(sent[2].messageId)).statusCode, 'Success');
    assert.equal((await service.outcome(sent[3].messageId)).statusCode, 'Success');
    // What was completed before would have been told by now.
    for (const early of sent.slice(0, 2)) {
      await assert.rejects(service.outcome(early.messageId, 300));
    }
  });
}

function settlementCases({ can, service, transport }) {
  it('delivers a message again that is abandoned, until it was tried too often', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const inbox = await listen(client, can);
    const sent = cloudMessage('try again');
    await service.send(device.deviceId, sent);
    const tries = 3; // as emulator.yaml says
    for (let i = 0; i < tries; i++) {
      const got = await inbox.next(`delivery ${i + 1}`);
      assert.equal(got.messageId, sent.messageId);
      await client.abandon(got);
    }
    assert.equal((await service.outcome(sent.messageId)).statusCode, 'DeliveryCountExceeded');
    assert.equal(inbox.length, 0);
  });

  it('tells the sender that the device rejects a message', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const inbox = await listen(client, can);
    const sent = cloudMessage('no, thanks', 'negative');
    await service.send(device.deviceId, sent);
    await client.reject(await inbox.next('the message'));
    assert.equal((await service.outcome(sent.messageId)).statusCode, 'Rejected');
  });

  it('delivers a message again whose lock is over, and refuses the old lock', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const inbox = await listen(client, can);
    const sent = cloudMessage('slow');
    await service.send(device.deviceId, sent);
    const first = await inbox.next('the first delivery');
    const second = await inbox.next('the second delivery'); // after 5 s, as emulator.yaml says
    assert.equal(second.messageId, sent.messageId);
    if (can.connections) await client.complete(first); // the SDK for AMQP does not wait for an answer
    else await assert.rejects(client.complete(first), ({ response }) => response.statusCode === 412);
    assert.equal((await registry.get(device.deviceId)).responseBody.cloudToDeviceMessageCount, 1);
    await client.complete(second);
    assert.equal((await service.outcome(sent.messageId)).statusCode, 'Success');
  });
}

function connectionCases({ can, events, service, transport }) {
  const state = async ({ deviceId }) => (await registry.get(deviceId)).responseBody;

  it('shows whether the device is connected, and when it was active', async (t) => {
    const device = await newDevice(t);
    assert.equal(device.connectionState, 'Disconnected');
    assert.match(device.lastActivityTime, /^0001-01-01T00:00:00/);
    const client = await open(t, transport, deviceString(device));
    const connected = await until('it is connected', async () => {
      const now = await state(device);
      return now.connectionState === 'Connected' && now;
    });
    assert.ok(Math.abs(Date.now() - new Date(connected.lastActivityTime)) < 60_000, connected.lastActivityTime);
    await client.close();
    await until('it is disconnected', async () => (await state(device)).connectionState === 'Disconnected');
  });

  it('closes the connection of a device for a new one of the same', async (t) => {
    const device = await newDevice(t);
    const old = await open(t, transport, deviceString(device));
    const gone = new Promise((resolve) => old.once('disconnect', resolve));
    const current = await open(t, transport, deviceString(device));
    await bounded(gone, 'the old connection to close');
    await send(current, 'still here');
    await events.next(device.deviceId, (event) => event.body.toString() === 'still here');
    assert.equal((await state(device)).connectionState, 'Connected');
  });

  for (const [what, change] of [
    ['disabled', ({ deviceId }) => registry.update({ deviceId, status: 'disabled' })],
    ['removed', ({ deviceId }) => registry.delete(deviceId)],
  ]) {
    it(`closes the connection of a device that is ${what}`, async (t) => {
      const device = await newDevice(t);
      const client = await open(t, transport, deviceString(device));
      const gone = new Promise((resolve) => client.once('disconnect', resolve));
      await change(device);
      await bounded(gone, 'the connection to close');
    });
  }

  it('keeps what a device has not completed for its next connection', async (t) => {
    const device = await newDevice(t);
    const sent = cloudMessage('keep me');
    await service.send(device.deviceId, sent);
    if (can.settle) { // MQTT completes what it delivers
      const first = await connect(t, transport, deviceString(device));
      await (await listen(first, can)).next('the first delivery');
      await first.close();
    }
    const second = await connect(t, transport, deviceString(device));
    const got = await (await listen(second, can)).next('the second delivery');
    assert.equal(got.messageId, sent.messageId);
    await second.complete(got);
    assert.equal((await service.outcome(sent.messageId)).statusCode, 'Success');
  });
}

// answer has a device answer a method with its payload and a status.
function answer(client, method, status = 200) {
  client.onDeviceMethod(method, (request, response) => {
    response.send(status, { method: request.methodName, payload: request.payload }, (error) => assert.ifError(error));
  });
}

function methodCases({ service, transport }) {
  it('calls a method and returns what the device answers', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    answer(client, 'reboot', 299);
    for (const payload of [{ delay: 5, why: ['a', { b: null }] }, 'text', 42, true, [1, 2], null]) {
      const result = await service.call(device.deviceId, 'reboot', payload);
      assert.deepEqual(result, { status: 299, payload: { method: 'reboot', payload } });
    }
  });

  it('calls several methods at once, each with its own answer', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    client.onDeviceMethod('wait', ({ payload }, response) => {
      setTimeout(() => response.send(200, payload, (error) => assert.ifError(error)), payload.delay);
    });
    const results = await Promise.all([300, 200, 100, 0].map((delay) => service.call(device.deviceId, 'wait', { delay })));
    assert.deepEqual(results.map(({ payload }) => payload.delay), [300, 200, 100, 0]);
  });

  it('waits for a device that has yet to connect', async (t) => {
    const device = await newDevice(t);
    const result = service.call(device.deviceId, 'late', 'x');
    const client = await connect(t, transport, deviceString(device));
    answer(client, 'late');
    assert.equal((await result).payload.payload, 'x');
  });

  it('says that a device does not answer in time', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const calls = new Inbox();
    client.onDeviceMethod('silent', (request) => calls.put(request));
    const call = { methodName: 'silent', payload: null, connectTimeoutInSeconds: 10, responseTimeoutInSeconds: 5 };
    await assert.rejects(service.client.invokeDeviceMethod(device.deviceId, call), (error) => {
      assert.equal(error.name, 'GatewayTimeoutError');
      assert.match(error.responseBody, /504101/);
      return true;
    });
    await calls.next('the call');
  });

  it('says that the device went away during the call', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    client.onDeviceMethod('leave', () => client.close());
    await assert.rejects(service.call(device.deviceId, 'leave', null), (error) => {
      assert.equal(error.response.statusCode, 404);
      assert.match(error.responseBody, /404104|404103/);
      return true;
    });
  });
}

// ready gets the device's twin and has it told of changes to desired properties.
async function ready(client) {
  const twin = await client.getTwin();
  await called((done) => twin.enableTwinDesiredPropertiesUpdates(done));
  return twin;
}

function report(twin, patch) {
  return called((done) => twin.properties.reported.update(patch, done));
}

// plain is what a twin says, without what comes with it.
function plain({ update, $version, $metadata, ...properties }) {
  return properties;
}

function twinCases({ transport }) {
  it('shows the device its twin', async (t) => {
    const device = await newDevice(t);
    await registry.updateTwin(device.deviceId, {
      tags: { secret: 'not for the device' },
      properties: { desired: { interval: 5, nested: { list: [1, 'two', { three: 3 }], on: true } } },
    }, '*');
    const client = await connect(t, transport, deviceString(device));
    const { properties } = await client.getTwin();
    assert.deepEqual(plain(properties.desired), { interval: 5, nested: { list: [1, 'two', { three: 3 }], on: true } });
    assert.equal(properties.desired.$version, 2);
    assert.equal(properties.reported.$version, 1);
    assert.equal(properties.desired.$metadata, undefined);
    assert.equal(properties.tags, undefined);
  });

  it('takes reported properties; null removes one', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const twin = await client.getTwin();
    await report(twin, { firmware: { version: '1.0', channel: 'beta' }, uptime: 10 });
    await report(twin, { firmware: { channel: null, build: 7 }, uptime: 11 });
    const { responseBody: { properties: { reported } } } = await registry.getTwin(device.deviceId);
    assert.deepEqual(plain(reported), { firmware: { version: '1.0', build: 7 }, uptime: 11 });
    assert.equal(reported.$version, 3);
    assert.ok(reported.$metadata.firmware.version.$lastUpdated);
    assert.equal((await client.getTwin()).properties.reported.$version, 3);
  });

  it('tells the device of changes to desired properties', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const twin = await ready(client);
    const changes = new Inbox();
    twin.on('properties.desired', (patch) => changes.put(structuredClone(patch)));
    await registry.updateTwin(device.deviceId, { properties: { desired: { interval: 5, gone: 1 } } }, '*');
    assert.deepEqual(await changes.next('the first change', ({ $version }) => $version === 2), { interval: 5, gone: 1, $version: 2 });
    await registry.updateTwin(device.deviceId, { properties: { desired: { gone: null, added: 'x' } } }, '*');
    assert.deepEqual(await changes.next('the second change', ({ $version }) => $version === 3), { gone: null, added: 'x', $version: 3 });
    assert.deepEqual(plain(twin.properties.desired), { interval: 5, added: 'x' });
  });

  it('does not tell the device of tags and its own reports', async (t) => {
    const device = await newDevice(t);
    const client = await connect(t, transport, deviceString(device));
    const twin = await ready(client);
    const changes = new Inbox();
    twin.on('properties.desired', (patch) => changes.put(structuredClone(patch)));
    await registry.updateTwin(device.deviceId, { tags: { floor: 3 } }, '*');
    await report(twin, { mine: 1 });
    await registry.updateTwin(device.deviceId, { properties: { desired: { last: 1 } } }, '*');
    const seen = await changes.next('the change', (patch) => patch.$version > 1);
    assert.deepEqual(seen, { last: 1, $version: 2 });
  });

  it('shows a device that was away the newest desired properties', async (t) => {
    const device = await newDevice(t);
    const first = await connect(t, transport, deviceString(device));
    await ready(first);
    await first.close();
    await registry.updateTwin(device.deviceId, { properties: { desired: { while: 'away' } } }, '*');
    const second = await connect(t, transport, deviceString(device));
    assert.equal((await ready(second)).properties.desired.while, 'away');
  });

  for (const [what, patch] of [
    ['more than 32 KB', Object.fromEntries(Array.from({ length: 10 }, (_, i) => [`key${i}`, 'x'.repeat(4000)]))],
    ['a string of more than 4 KB', { text: 'x'.repeat(4097) }],
    ['a depth of more than 10', Array.from({ length: 12 }).reduce((inner) => ({ level: inner }), 'deep')],
    ['a key with a dot', { 'a.b': 1 }],
  ]) {
    it(`refuses reported properties with ${what}, and changes nothing`, async (t) => {
      const device = await newDevice(t);
      const client = await connect(t, transport, deviceString(device));
      const twin = await client.getTwin();
      await assert.rejects(report(twin, patch));
      assert.equal((await client.getTwin()).properties.reported.$version, 1);
    });
  }
}

function moduleCases({ events, service, transport }) {
  const newModule = async (t, moduleId = 'climate') => {
    const { deviceId } = await newDevice(t);
    return (await registry.addModule({ deviceId, moduleId })).responseBody;
  };

  it('connects a module and stamps its telemetry with its name', async (t) => {
    const module = await newModule(t);
    const client = await connectModule(t, transport, module);
    await send(client, 'from a module');
    const event = await events.next(module.deviceId);
    assert.equal(event.body.toString(), 'from a module');
    assert.equal(event.systemProperties['iothub-connection-module-id'], 'climate');
    await until('it is connected', async () =>
      (await registry.getModule(module.deviceId, 'climate')).responseBody.connectionState === 'Connected');
  });

  it('calls methods of a module', async (t) => {
    const module = await newModule(t);
    const client = await connectModule(t, transport, module);
    client.onMethod('adjust', ({ payload }, response) => response.send(201, { got: payload }, (error) => assert.ifError(error)));
    const result = await service.call(module.deviceId, 'adjust', 7, ['climate']);
    assert.deepEqual(result, { status: 201, payload: { got: 7 } });
  });

  it('has a twin for a module', async (t) => {
    const module = await newModule(t);
    const client = await connectModule(t, transport, module);
    const twin = await ready(client);
    const changes = new Inbox();
    twin.on('properties.desired', (patch) => changes.put(structuredClone(patch)));
    await registry.updateModuleTwin(module.deviceId, 'climate', { properties: { desired: { degrees: 21 } } }, '*');
    assert.equal((await changes.next('the change', ({ degrees }) => degrees)).degrees, 21);
    await report(twin, { degrees: 20 });
    const { responseBody } = await registry.getModuleTwin(module.deviceId, 'climate');
    assert.equal(responseBody.properties.reported.degrees, 20);
    assert.equal(responseBody.moduleId, 'climate');
    const { responseBody: ofDevice } = await registry.getTwin(module.deviceId);
    assert.deepEqual(plain(ofDevice.properties.reported), {});
  });

  it('refuses a module with the key of another', async (t) => {
    const module = await newModule(t);
    const { responseBody: other } = await registry.addModule({ deviceId: module.deviceId, moduleId: 'other' });
    await assert.rejects(connectModule(t, transport, { ...module, authentication: other.authentication })
      .then((client) => send(client)));
  });

  it('lets modules and their device be connected at once', async (t) => {
    const device = await newDevice(t);
    const modules = await Promise.all(['one', 'two'].map(async (moduleId) =>
      (await registry.addModule({ deviceId: device.deviceId, moduleId })).responseBody));
    const clients = [await connect(t, transport, deviceString(device))];
    for (const module of modules) clients.push(await connectModule(t, transport, module));
    await Promise.all(clients.map((client, i) => send(client, `${i}`)));
    const seen = [];
    for (const _ of clients) {
      const event = await events.next(device.deviceId);
      seen.push([event.body.toString(), event.systemProperties['iothub-connection-module-id']]);
    }
    assert.deepEqual(seen.sort(), [['0', undefined], ['1', 'one'], ['2', 'two']]);
  });
}
