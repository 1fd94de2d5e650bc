'use strict';

// The service side of the hub: registry, bulk operations, queries, twins, direct
// methods, cloud-to-device messages with their feedback, and jobs.
const assert = require('node:assert/strict');
const { after, before, describe, it } = require('node:test');
const { randomBytes } = require('node:crypto');
const { Message, NoRetry } = require('azure-iot-common');
const { Mqtt } = require('azure-iot-device-mqtt');
const { AmqpWs, Client, JobClient, Registry } = require('azure-iothub');
const {
  Service, called, closing, connect, deviceString, fields, host, hubString, later, newDevice, registry, suite, token,
  unique, until,
} = require('./support.js');

const service = new Service();

// rejection checks status, class and the hub's own code of a refused request.
function rejection(status, name, code) {
  return (error) => {
    assert.equal(error.response?.statusCode, status, `${error}: ${error.responseBody}`);
    assert.equal(error.name, name);
    if (code) assert.match(`${error.response.headers['iothub-errorcode']} ${error.responseBody}`, new RegExp(code));
    return true;
  };
}

function withPolicy(policy, key) {
  return `HostName=${host};SharedAccessKeyName=${policy};SharedAccessKey=${key}`;
}

describe('service side', suite, () => {
  before(() => service.open());
  after(() => service.close());

  accessCases();
  registryCases();
  bulkCases();
  moduleCases();
  twinCases();
  queryCases();
  methodCases();
  cloudToDeviceCases();
  describe('jobs', { concurrency: 1 }, jobCases); // the hub runs one at a time
});

function accessCases() {
  it('refuses REST calls with a wrong key', async () => {
    const { SharedAccessKeyName: policy } = fields(hubString);
    const stranger = Registry.fromConnectionString(withPolicy(policy, randomBytes(32).toString('base64')));
    await assert.rejects(stranger.list(), rejection(401, 'UnauthorizedError'));
  });

  it('refuses REST calls with a token that is over', async () => {
    const { SharedAccessKeyName: policy, SharedAccessKey: key } = fields(hubString);
    await assert.rejects(Registry.fromSharedAccessSignature(token(host, policy, key, -60)).list(), rejection(401, 'UnauthorizedError'));
  });

  it('takes a token that a program has made by itself', async () => {
    const { SharedAccessKeyName: policy, SharedAccessKey: key } = fields(hubString);
    await Registry.fromSharedAccessSignature(token(host, policy, key, 600)).list();
  });

  it('refuses an AMQP connection with a wrong key', async () => {
    const stranger = Client.fromConnectionString(withPolicy('service', randomBytes(32).toString('base64')));
    stranger.setRetryPolicy(new NoRetry());
    await assert.rejects(stranger.open(), ({ amqpError }) => amqpError.name === 'UnauthorizedError');
  });

  it('serves AMQP on WebSockets', async (t) => {
    const device = await newDevice(t);
    const client = Client.fromConnectionString(hubString, AmqpWs);
    closing(t, client);
    await client.open();
    await client.send(device.deviceId, new Message('over a WebSocket'));
    assert.equal((await registry.get(device.deviceId)).responseBody.cloudToDeviceMessageCount, 1);
  });
}

function registryCases() {
  it('creates a device with keys and shows all of it', async (t) => {
    const created = await newDevice(t, { status: 'disabled', statusReason: 'not yet' });
    const { responseBody: device, httpResponse } = await registry.get(created.deviceId);
    assert.deepEqual({ ...device }, { ...created });
    assert.equal(httpResponse.statusCode, 200);
    assert.equal(httpResponse.headers.etag, `"${device.etag}"`);
    assert.equal(device.status, 'disabled');
    assert.equal(device.statusReason, 'not yet');
    assert.equal(device.connectionState, 'Disconnected');
    assert.equal(device.cloudToDeviceMessageCount, 0);
    assert.equal(device.authentication.type, 'sas');
    assert.match(device.generationId, /^\d+$/);
    for (const key of ['primaryKey', 'secondaryKey']) {
      const { length } = Buffer.from(device.authentication.symmetricKey[key], 'base64');
      assert.ok(length >= 16 && length <= 64, `${key} has ${length} bytes`);
    }
  });

  it('takes the keys that the caller brings', async (t) => {
    const symmetricKey = { primaryKey: randomBytes(32).toString('base64'), secondaryKey: randomBytes(32).toString('base64') };
    const device = await newDevice(t, { authentication: { symmetricKey } });
    assert.deepEqual(device.authentication.symmetricKey, symmetricKey);
  });

  it('keeps thumbprints, and no keys, of a device with certificates', async (t) => {
    const thumbprint = randomBytes(20).toString('hex').toUpperCase();
    const { deviceId } = await newDevice(t, { authentication: { x509Thumbprint: { primaryThumbprint: thumbprint } } });
    const { responseBody: { authentication } } = await registry.get(deviceId);
    assert.equal(authentication.type, 'selfSigned');
    assert.equal(authentication.x509Thumbprint.primaryThumbprint, thumbprint);
    assert.ok(!authentication.symmetricKey?.primaryKey);
  });

  it('refuses a device that exists', async (t) => {
    const { deviceId } = await newDevice(t);
    await assert.rejects(registry.create({ deviceId }), rejection(409, 'DeviceAlreadyExistsError', 'DeviceAlreadyExists|409001'));
  });

  it('refuses identities that are not allowed', async () => {
    for (const deviceId of ['with space', 'a'.repeat(129), 'sl/ash', 'ümlaut']) {
      await assert.rejects(registry.create({ deviceId }), rejection(400, 'ArgumentError'), deviceId);
    }
  });

  it('refuses keys that are no keys', async () => {
    for (const primaryKey of ['not base64!', randomBytes(8).toString('base64'), randomBytes(65).toString('base64')]) {
      const symmetricKey = { primaryKey, secondaryKey: randomBytes(32).toString('base64') };
      await assert.rejects(registry.create({ deviceId: unique('bad'), authentication: { symmetricKey } }), rejection(400, 'ArgumentError'));
    }
  });

  it('says that a device does not exist', async () => {
    const deviceId = unique('nobody');
    const missing = rejection(404, 'DeviceNotFoundError', 'DeviceNotFound');
    await assert.rejects(registry.get(deviceId), missing);
    await assert.rejects(registry.update({ deviceId, status: 'disabled' }), missing);
    await assert.rejects(registry.delete(deviceId), missing);
    await assert.rejects(registry.getTwin(deviceId), missing);
  });

  it('changes a device and its ETag', async (t) => {
    const device = await newDevice(t);
    const { responseBody: changed } = await registry.update({ ...device, status: 'disabled', statusReason: 'maintenance' });
    assert.equal(changed.status, 'disabled');
    assert.notEqual(changed.etag, device.etag);
    assert.equal(changed.generationId, device.generationId);
    assert.deepEqual(changed.authentication, device.authentication);
    assert.notEqual(changed.statusUpdatedTime, device.statusUpdatedTime);
  });

  it('gives a device that is registered again another generation', async (t) => {
    const device = await newDevice(t);
    await service.send(device.deviceId, new Message('for the first'));
    await registry.delete(device.deviceId);
    const { responseBody: again } = await registry.create({ deviceId: device.deviceId });
    assert.notEqual(again.generationId, device.generationId);
    assert.notEqual(again.authentication.symmetricKey.primaryKey, device.authentication.symmetricKey.primaryKey);
    assert.equal(again.cloudToDeviceMessageCount, 0);
  });

  it('lists devices', async (t) => {
    const devices = await Promise.all([newDevice(t), newDevice(t)]);
    const listed = (await registry.list()).responseBody.map(({ deviceId }) => deviceId);
    for (const { deviceId } of devices) assert.ok(listed.includes(deviceId));
  });

  it('counts devices', async (t) => {
    const count = async () => (await registry.getRegistryStatistics()).responseBody;
    await newDevice(t, { status: 'disabled' });
    const { totalDeviceCount, enabledDeviceCount, disabledDeviceCount } = await count();
    assert.equal(totalDeviceCount, enabledDeviceCount + disabledDeviceCount);
    assert.ok(disabledDeviceCount >= 1);
  });
}

function bulkCases() {
  const three = () => [1, 2, 3].map((n) => ({ deviceId: unique(`bulk-${n}`) }));
  const removed = (t, devices) => later(t, () => registry.removeDevices(devices, true).catch(() => {})); // some are gone

  it('creates, changes and removes devices in one call each', async (t) => {
    const devices = three();
    removed(t, devices);
    const { responseBody: created } = await registry.addDevices(devices);
    assert.equal(created.isSuccessful, true);
    assert.deepEqual(created.errors, []);
    for (const { deviceId } of devices) {
      const { responseBody } = await registry.get(deviceId);
      assert.ok(responseBody.authentication.symmetricKey.primaryKey);
    }
    const { responseBody: changed } = await registry.updateDevices(devices.map((d) => ({ ...d, status: 'disabled' })), true);
    assert.equal(changed.isSuccessful, true);
    assert.equal((await registry.get(devices[0].deviceId)).responseBody.status, 'disabled');
    const { responseBody: gone } = await registry.removeDevices(devices, true);
    assert.equal(gone.isSuccessful, true);
    await assert.rejects(registry.get(devices[2].deviceId), { name: 'DeviceNotFoundError' });
  });

  it('does what it can of a call, and says what it can not', async (t) => {
    const devices = three();
    removed(t, devices);
    await registry.create(devices[1]);
    await assert.rejects(registry.addDevices(devices), (error) => {
      assert.equal(error.response.statusCode, 400);
      const { isSuccessful, errors } = JSON.parse(error.responseBody);
      assert.equal(isSuccessful, false);
      assert.equal(errors.length, 1);
      assert.equal(errors[0].deviceId, devices[1].deviceId);
      assert.match(String(errors[0].errorCode), /DeviceAlreadyExists|409001/);
      return true;
    });
    await registry.get(devices[0].deviceId);
    await registry.get(devices[2].deviceId);
  });

  it('changes and removes only what has the ETag of the call', async (t) => {
    const device = await newDevice(t);
    const { responseBody: current } = await registry.update({ ...device, statusReason: 'changed meanwhile' });
    const stale = rejection(400, 'ArgumentError', 'PreconditionFailed|412001');
    await assert.rejects(registry.updateDevices([{ ...device, eTag: device.etag, status: 'disabled' }], false), stale);
    await assert.rejects(registry.removeDevices([{ deviceId: device.deviceId, eTag: device.etag }], false), stale);
    const { responseBody } = await registry.updateDevices([{ ...current, eTag: current.etag, status: 'disabled' }], false);
    assert.equal(responseBody.isSuccessful, true);
    assert.equal((await registry.get(device.deviceId)).responseBody.status, 'disabled');
  });
}

function moduleCases() {
  it('creates, lists, changes and removes modules', async (t) => {
    const { deviceId } = await newDevice(t);
    const { responseBody: module, httpResponse } = await registry.addModule({ deviceId, moduleId: 'climate' });
    assert.equal(httpResponse.statusCode, 200);
    assert.equal(module.deviceId, deviceId);
    assert.equal(module.moduleId, 'climate');
    assert.ok(module.authentication.symmetricKey.primaryKey);
    await registry.addModule({ deviceId, moduleId: 'light', managedBy: 'somebody' });
    const { responseBody: modules } = await registry.getModulesOnDevice(deviceId);
    assert.deepEqual(modules.map(({ moduleId }) => moduleId).sort(), ['climate', 'light']);
    const { responseBody: changed } = await registry.updateModule({ ...module, managedBy: 'us' });
    assert.equal(changed.managedBy, 'us');
    await assert.rejects(registry.updateModule({ ...module, managedBy: 'nobody' }), rejection(412, 'InvalidEtagError'));
    await registry.removeModule(deviceId, 'climate');
    await assert.rejects(registry.getModule(deviceId, 'climate'), rejection(404, 'Error', 'ModuleNotFound'));
  });

  it('refuses a module that exists, and one of no device', async (t) => {
    const { deviceId } = await newDevice(t);
    await registry.addModule({ deviceId, moduleId: 'twice' });
    await assert.rejects(registry.addModule({ deviceId, moduleId: 'twice' }),
      rejection(409, 'DeviceAlreadyExistsError', 'ModuleAlreadyExistsOnDevice|409301'));
    await assert.rejects(registry.addModule({ deviceId: unique('nobody'), moduleId: 'm' }), rejection(404, 'DeviceNotFoundError'));
  });

  it('removes modules with their device', async (t) => {
    const { deviceId } = await newDevice(t);
    await registry.addModule({ deviceId, moduleId: 'm' });
    await registry.delete(deviceId);
    await registry.create({ deviceId });
    assert.deepEqual((await registry.getModulesOnDevice(deviceId)).responseBody, []);
  });
}

function twinCases() {
  it('has a twin for every device', async (t) => {
    const device = await newDevice(t);
    const { responseBody: twin } = await registry.getTwin(device.deviceId);
    assert.equal(twin.deviceId, device.deviceId);
    assert.equal(twin.status, 'enabled');
    assert.equal(twin.connectionState, 'Disconnected');
    assert.equal(twin.authenticationType, 'sas');
    assert.equal(twin.version, 2);
    assert.deepEqual(twin.tags ?? {}, {});
    for (const part of [twin.properties.desired, twin.properties.reported]) {
      assert.equal(part.$version, 1);
      assert.ok(part.$metadata.$lastUpdated);
    }
  });

  it('merges tags and desired properties; null removes', async (t) => {
    const { deviceId } = await newDevice(t);
    await registry.updateTwin(deviceId, { tags: { site: { floor: 1, room: 'a' } }, properties: { desired: { a: 1, b: { c: 2 } } } }, '*');
    const { responseBody: twin } = await registry.updateTwin(deviceId,
      { tags: { site: { room: null }, owner: 'us' }, properties: { desired: { b: { d: 3 }, a: null } } }, '*');
    assert.deepEqual(twin.tags, { site: { floor: 1 }, owner: 'us' });
    const { $metadata, $version, ...desired } = twin.properties.desired;
    assert.deepEqual(desired, { b: { c: 2, d: 3 } });
    assert.equal($version, 3);
    assert.ok($metadata.b.d.$lastUpdatedVersion === 3 && $metadata.b.c.$lastUpdatedVersion === 2);
  });

  it('changes a twin only with its newest ETag', async (t) => {
    const { deviceId } = await newDevice(t);
    const { responseBody: first } = await registry.getTwin(deviceId);
    const { responseBody: second } = await registry.updateTwin(deviceId, { tags: { a: 1 } }, first.etag);
    assert.notEqual(second.etag, first.etag);
    assert.ok(second.version > first.version);
    await assert.rejects(registry.updateTwin(deviceId, { tags: { a: 2 } }, first.etag), rejection(412, 'InvalidEtagError'));
    assert.equal((await registry.getTwin(deviceId)).responseBody.tags.a, 1);
  });

  it('has convenience of the SDK: a twin that updates itself', async (t) => {
    const { deviceId } = await newDevice(t);
    const { responseBody: twin } = await registry.getTwin(deviceId);
    const { result: updated } = await twin.update({ tags: { by: 'twin' } });
    assert.equal(updated.tags.by, 'twin');
    await twin.get();
    assert.equal(twin.tags.by, 'twin');
  });

  for (const [what, patch] of [
    ['tags of more than 8 KB', { tags: { a: 'x'.repeat(4000), b: 'x'.repeat(4000), c: 'x'.repeat(1000) } }],
    ['desired properties of more than 32 KB',
      { properties: { desired: Object.fromEntries(Array.from({ length: 9 }, (_, i) => [`k${i}`, 'x'.repeat(4000)])) } }],
    ['a string of more than 4 KB', { properties: { desired: { text: 'x'.repeat(4097) } } }],
    ['a key with a dollar sign', { properties: { desired: { $key: 1 } } }],
    ['a depth of more than 10', { tags: Array.from({ length: 12 }).reduce((inner) => ({ level: inner }), 'deep') }],
    ['an integer beyond 2^52', { properties: { desired: { big: 2 ** 53 } } }],
  ]) {
    it(`refuses ${what}`, async (t) => {
      const { deviceId } = await newDevice(t);
      await assert.rejects(registry.updateTwin(deviceId, patch, '*'), ({ response, responseBody }) => {
        assert.ok([400, 413].includes(response.statusCode), `${response.statusCode}: ${responseBody}`);
        return true;
      });
      assert.equal((await registry.getTwin(deviceId)).responseBody.properties.desired.$version, 1);
    });
  }
}

function queryCases() {
  // fleet registers devices whose twins have the tag fleet, which no others have.
  async function fleet(t, twins) {
    const name = unique('fleet');
    const devices = await Promise.all(twins.map(() => newDevice(t)));
    await Promise.all(devices.map(({ deviceId }, i) => {
      const { tags, desired = {} } = twins[i];
      return registry.updateTwin(deviceId, { tags: { fleet: name, ...tags }, properties: { desired } }, '*');
    }));
    return { name, ids: devices.map(({ deviceId }) => deviceId) };
  }

  // pages reads all of a result. Without the token, the SDK's promise begins anew.
  async function pages(query) {
    const read = [];
    while (query.hasMoreResults) read.push((await query.next(query.continuationToken)).result);
    return read;
  }

  const all = async (query) => (await pages(query)).flat();

  const ids = (rows) => rows.map(({ deviceId }) => deviceId).sort();

  it('finds twins by tags, desired properties and fields of the hub', async (t) => {
    const { name, ids: [one, two, three] } = await fleet(t, [
      { tags: { floor: 1, site: { name: 'north' } }, desired: { rate: 10 } },
      { tags: { floor: 2, site: { name: 'south' } }, desired: { rate: 20 } },
      { tags: { floor: 3 }, desired: { rate: 30, extra: true } },
    ]);
    await registry.update({ deviceId: three, status: 'disabled' });
    for (const [condition, want] of [
      ['tags.floor = 2', [two]],
      ['tags.floor >= 2 AND properties.desired.rate < 30', [two]],
      ["tags.site.name = 'north' OR tags.floor = 3", [one, three]],
      ["tags.site.name IN ['north', 'south']", [one, two]],
      ['tags.floor != 1', [two, three]],
      ['NOT tags.floor = 1', [two, three]],
      ['IS_DEFINED(properties.desired.extra)', [three]],
      ['properties.desired.extra = true', [three]],
      [`deviceId = '${one}'`, [one]],
      ["status = 'disabled'", [three]],
      ["connectionState = 'Disconnected' AND status = 'enabled'", [one, two]],
      ['tags.floor = 99', []],
    ]) {
      const query = registry.createQuery(`SELECT * FROM devices WHERE tags.fleet = '${name}' AND (${condition})`);
      assert.deepEqual(ids(await all(query)), want.sort(), condition);
    }
  });

  it('gives twins as twins', async (t) => {
    const { name, ids: [id] } = await fleet(t, [{ desired: { rate: 1 } }]);
    const { result: [twin] } = await registry.createQuery(`SELECT * FROM devices WHERE tags.fleet = '${name}'`).nextAsTwin();
    assert.equal(twin.deviceId, id);
    assert.equal(twin.properties.desired.rate, 1);
    assert.ok(twin.etag && twin.properties.desired.$metadata);
  });

  it('gives a large result page by page', async (t) => {
    const { name, ids: want } = await fleet(t, Array.from({ length: 7 }, () => ({})));
    const read = await pages(registry.createQuery(`SELECT * FROM devices WHERE tags.fleet = '${name}'`, 3));
    assert.deepEqual(read.map(({ length }) => length), [3, 3, 1]);
    assert.deepEqual(ids(read.flat()), want.sort());
  });

  it('goes on from a continuation token', async (t) => {
    const { name, ids: want } = await fleet(t, Array.from({ length: 4 }, () => ({})));
    const text = `SELECT * FROM devices WHERE tags.fleet = '${name}'`;
    const first = registry.createQuery(text, 2);
    const { result: head } = await first.next();
    const { result: tail } = await registry.createQuery(text, 2).next(first.continuationToken);
    assert.deepEqual(ids([...head, ...tail]), want.sort());
  });

  it('counts, sums and groups', async (t) => {
    const { name } = await fleet(t, [
      { tags: { site: 'north' }, desired: { rate: 10 } },
      { tags: { site: 'north' }, desired: { rate: 30 } },
      { tags: { site: 'south' }, desired: { rate: 5 } },
    ]);
    const where = `FROM devices WHERE tags.fleet = '${name}'`;
    assert.deepEqual(await all(registry.createQuery(`SELECT COUNT() AS number ${where}`)), [{ number: 3 }]);
    const { result: [row], message } = await registry.createQuery(
      `SELECT SUM(properties.desired.rate) AS sum, AVG(properties.desired.rate) AS avg,
        MIN(properties.desired.rate) AS min, MAX(properties.desired.rate) AS max ${where}`).next();
    assert.deepEqual(row, { sum: 45, avg: 15, min: 5, max: 30 });
    assert.equal(message.headers['x-ms-item-type'], 'raw');
    const groups = await all(registry.createQuery(`SELECT tags.site AS site, COUNT() AS number ${where} GROUP BY tags.site`));
    assert.deepEqual(groups.sort((a, b) => (a.site < b.site ? -1 : 1)), [{ site: 'north', number: 2 }, { site: 'south', number: 1 }]);
  });

  it('shows chosen fields alone', async (t) => {
    const { name, ids: [id] } = await fleet(t, [{ tags: { floor: 4 }, desired: { rate: 1 } }]);
    const rows = await all(registry.createQuery(
      `SELECT deviceId, tags.floor AS floor, properties.desired.rate AS rate FROM devices WHERE tags.fleet = '${name}'`));
    assert.deepEqual(rows, [{ deviceId: id, floor: 4, rate: 1 }]);
  });

  it('gives the first of the result', async (t) => {
    const { name } = await fleet(t, [{}, {}, {}]);
    assert.equal((await all(registry.createQuery(`SELECT TOP 2 * FROM devices WHERE tags.fleet = '${name}'`))).length, 2);
  });

  it('finds the twins of modules', async (t) => {
    const { deviceId } = await newDevice(t);
    await registry.addModule({ deviceId, moduleId: 'm' });
    await registry.updateModuleTwin(deviceId, 'm', { tags: { kind: 'sensor' } }, '*');
    const rows = await all(registry.createQuery(`SELECT * FROM devices.modules WHERE deviceId = '${deviceId}' AND tags.kind = 'sensor'`));
    assert.deepEqual(rows.map((row) => [row.deviceId, row.moduleId]), [[deviceId, 'm']]);
  });

  it('refuses what is no query', async () => {
    for (const text of ['SELECT', 'DELETE FROM devices', 'SELECT * FROM cars', "SELECT * FROM devices WHERE tags.a = 'open"]) {
      await assert.rejects(registry.createQuery(text).next(), rejection(400, 'ArgumentError'), text);
    }
  });
}

function methodCases() {
  const call = { methodName: 'reboot', payload: null, connectTimeoutInSeconds: 0, responseTimeoutInSeconds: 5 };

  it('says that a device is not connected', async (t) => {
    const { deviceId } = await newDevice(t);
    await assert.rejects(service.client.invokeDeviceMethod(deviceId, call), rejection(404, 'Error', '404103'));
  });

  it('says that a connected device has no methods', async (t) => {
    const device = await newDevice(t);
    await connect(t, Mqtt, deviceString(device));
    await assert.rejects(service.client.invokeDeviceMethod(device.deviceId, call), rejection(404, 'Error', '404103'));
  });

  it('waits for a device as long as the caller says', async (t) => {
    const { deviceId } = await newDevice(t);
    await assert.rejects(service.client.invokeDeviceMethod(deviceId, { ...call, connectTimeoutInSeconds: 1 }), rejection(404, 'Error', '404103'));
  });

  it('says that a device does not exist', async () => {
    await assert.rejects(service.client.invokeDeviceMethod(unique('nobody'), call), rejection(404, 'Error', '404001'));
  });

  it('refuses times that are not allowed', async (t) => {
    const { deviceId } = await newDevice(t);
    for (const times of [{ responseTimeoutInSeconds: 4 }, { responseTimeoutInSeconds: 301 }, { connectTimeoutInSeconds: 301 }]) {
      await assert.rejects(service.client.invokeDeviceMethod(deviceId, { ...call, ...times }), rejection(400, 'ArgumentError'));
    }
  });

  it('refuses a payload of more than 128 KB', async (t) => {
    const { deviceId } = await newDevice(t);
    await assert.rejects(service.client.invokeDeviceMethod(deviceId, { ...call, payload: 'x'.repeat(129 * 1024) }), ({ response }) =>
      [400, 413].includes(response.statusCode));
  });
}

function cloudToDeviceCases() {
  function message(ack) {
    const made = new Message('hello');
    made.messageId = unique('message');
    made.ack = ack;
    return made;
  }

  it('says that the device of a message does not exist', async () => {
    await assert.rejects(service.send(unique('nobody'), message('full')), { name: 'DeviceNotFoundError' });
  });

  it('goes on after a refused message', async (t) => {
    const { deviceId } = await newDevice(t);
    await assert.rejects(service.send(unique('nobody'), message('full')));
    await service.send(deviceId, message('none'));
  });

  it('says that the queue of a device is full, and takes more once it is not', async (t) => {
    const { deviceId } = await newDevice(t);
    for (let i = 0; i < 50; i++) await service.send(deviceId, new Message(`${i}`));
    await assert.rejects(service.send(deviceId, new Message('one too many')), { name: 'DeviceMaximumQueueDepthExceededError' });
    await purge(deviceId);
    await service.send(deviceId, new Message('again'));
  });

  it('refuses a message of more than 64 KB', async (t) => {
    const { deviceId } = await newDevice(t);
    await assert.rejects(service.send(deviceId, new Message(Buffer.alloc(64 * 1024 + 1))), { name: 'MessageTooLargeError' });
  });

  it('tells the sender that a message was purged', async (t) => {
    const { deviceId } = await newDevice(t);
    const sent = [message('full'), message('negative'), message('none')];
    for (const one of sent) await service.send(deviceId, one);
    const purged = await purge(deviceId);
    assert.equal(purged.totalMessagesPurged, 3);
    assert.equal(purged.deviceId, deviceId);
    for (const { messageId } of sent.slice(0, 2)) {
      const { batch, statusCode, description } = await service.outcome(messageId);
      assert.equal(statusCode, 'Purged');
      assert.ok(description);
      assert.equal(batch.contentType, 'application/vnd.microsoft.iothub.feedback.json');
      assert.ok(batch.transportObj.message_annotations['iothub-enqueuedtime']);
    }
    assert.equal((await registry.get(deviceId)).responseBody.cloudToDeviceMessageCount, 0);
  });

  // purge has no method in the SDK, whose own client makes the request.
  function purge(deviceId) {
    const path = `/devices/${encodeURIComponent(deviceId)}/commands?api-version=2021-04-12`;
    return called((done) => registry._restApiClient.executeApiCall('DELETE', path, {}, null, done));
  }

  it('has a receiver of file notifications', async () => {
    const { result: receiver } = await service.client.getFileNotificationReceiver();
    assert.ok(receiver);
  });
}

function jobCases() {
  const jobs = JobClient.fromConnectionString(hubString);
  const start = (schedule) => called((done) => schedule((error, job) => done(error, job)));

  function ended(jobId) {
    return until('the job is over', async () => {
      const { jobStatus } = await jobs.getJob(jobId);
      return ['completed', 'failed', 'cancelled'].includes(jobStatus.status) && jobStatus;
    });
  }

  async function tagged(t, count) {
    const name = unique('fleet');
    const devices = await Promise.all(Array.from({ length: count }, () => newDevice(t)));
    await Promise.all(devices.map(({ deviceId }) => registry.updateTwin(deviceId, { tags: { fleet: name } }, '*')));
    return { devices, condition: `tags.fleet = '${name}'` };
  }

  it('updates the twins that a condition chooses', async (t) => {
    const { devices, condition } = await tagged(t, 3);
    const jobId = unique('job');
    const created = await start((done) => jobs.scheduleTwinUpdate(jobId, condition,
      { etag: '*', properties: { desired: { rate: 9 } } }, new Date(), 60, done));
    assert.equal(created.jobId, jobId);
    assert.equal(created.type, 'scheduleUpdateTwin');
    const job = await ended(jobId);
    assert.equal(job.status, 'completed');
    assert.equal(job.deviceJobStatistics.deviceCount, 3);
    assert.equal(job.deviceJobStatistics.succeededCount, 3);
    for (const { deviceId } of devices) assert.equal((await registry.getTwin(deviceId)).responseBody.properties.desired.rate, 9);
  });

  it('calls a method of the devices that a condition chooses', async (t) => {
    const { devices: [there], condition } = await tagged(t, 2); // the other one is away
    const client = await connect(t, Mqtt, deviceString(there));
    client.onDeviceMethod('reboot', ({ payload }, response) => response.send(200, payload, (error) => assert.ifError(error)));
    await service.call(there.deviceId, 'reboot', null);
    const jobId = unique('job');
    await start((done) => jobs.scheduleDeviceMethod(jobId, condition,
      { methodName: 'reboot', payload: { now: true }, responseTimeoutInSeconds: 5 }, new Date(), 30, done));
    const { deviceJobStatistics } = await ended(jobId);
    assert.equal(deviceJobStatistics.succeededCount, 1);
    assert.equal(deviceJobStatistics.failedCount, 1);
    const { result: rows } = await registry.createQuery(`SELECT * FROM devices.jobs WHERE devices.jobs.jobId = '${jobId}'`).next();
    const done = rows.find(({ deviceId }) => deviceId === there.deviceId);
    assert.equal(done.status, 'completed');
    assert.deepEqual(done.outcome.deviceMethodResponse, { status: 200, payload: { now: true } });
  });

  it('cancels a job that has yet to start, and refuses its ID for another', async () => {
    const jobId = unique('job');
    const schedule = (done) => jobs.scheduleTwinUpdate(jobId, "deviceId = 'nobody'", { etag: '*', tags: { a: 1 } },
      new Date(Date.now() + 3_600_000), 60, done);
    await start(schedule);
    const { jobStatus } = await jobs.cancelJob(jobId);
    assert.equal(jobStatus.status, 'cancelled');
    await assert.rejects(start(schedule), rejection(409, 'DeviceAlreadyExistsError', 'JobAlreadyExists|409104'));
  });

  it('lists jobs by kind and state', async () => {
    const jobId = unique('job');
    await start((done) => jobs.scheduleTwinUpdate(jobId, "deviceId = 'nobody'", { etag: '*', tags: { a: 1 } }, new Date(), 60, done));
    await ended(jobId);
    const { result } = await jobs.createQuery('scheduleUpdateTwin', 'completed', 100).next();
    assert.ok(result.some((job) => job.jobId === jobId));
    assert.ok(result.every(({ type, status }) => type === 'scheduleUpdateTwin' && status === 'completed'));
  });

  it('says that a job does not exist', async () => {
    await assert.rejects(jobs.getJob(unique('job')), rejection(404, 'Error', 'JobNotFound|404002'));
  });
}
