'use strict';

// What the cases share. The names of the settings are those of the emulator's file
// emulator.env, but a connection string for Service Bus or Event Hubs means AMQP
// over TLS here.
const { randomUUID } = require('node:crypto');
const { setTimeout: sleep } = require('node:timers/promises');
const { EventHubConsumerClient, earliestEventPosition } = require('@azure/event-hubs');
const { NoRetry, SharedAccessSignature } = require('azure-iot-common');
const { Client: DeviceClient, ModuleClient } = require('azure-iot-device');
const { Client: ServiceClient, Registry } = require('azure-iothub');

// patience bounds each wait for something to arrive, in milliseconds.
const patience = 20_000;

// suite are the options of every file's suite. Most cases wait more than they work.
const suite = { concurrency: 6, timeout: 90_000 };

function setting(name) {
  const value = process.env[name];
  if (!value) throw new Error(`the environment lacks ${name}`);
  return value;
}

const hubString = setting('IOTHUB_CONNECTION_STRING');
const eventsString = setting('EVENTHUB_CONNECTION_STRING');
const serviceBusString = setting('SERVICEBUS_CONNECTION_STRING');

// fields takes a connection string apart. Keys end with signs of equality.
function fields(text) {
  return Object.fromEntries(text.split(';').filter(Boolean).map((part) => {
    const at = part.indexOf('=');
    return [part.slice(0, at), part.slice(at + 1)];
  }));
}

const host = fields(hubString).HostName;

// registry is shared: it only makes requests, and keeps no connection busy.
const registry = Registry.fromConnectionString(hubString);

// Inbox keeps what arrives until somebody asks for it.
class Inbox {
  #items = [];
  #waiting = [];

  put(item) {
    const at = this.#waiting.findIndex(({ accept }) => accept(item));
    if (at < 0) this.#items.push(item);
    else this.#waiting.splice(at, 1)[0].resolve(item);
  }

  // next takes the first item that is accepted, also one that has yet to come.
  async next(what, accept = () => true, limit = patience) {
    const at = this.#items.findIndex(accept);
    if (at >= 0) return this.#items.splice(at, 1)[0];
    return bounded(new Promise((resolve) => this.#waiting.push({ accept, resolve })), what, limit);
  }

  get length() {
    return this.#items.length;
  }
}

// bounded fails if a promise takes too long.
async function bounded(promise, what, limit = patience) {
  const over = new AbortController();
  const late = sleep(limit, undefined, { signal: over.signal }).then(() => {
    throw new Error(`waited ${limit} ms for ${what}`);
  });
  late.catch(() => {}); // it is aborted when it isn't needed
  try {
    return await Promise.race([promise, late]);
  } finally {
    over.abort();
  }
}

// until asks again and again for something true.
async function until(what, ask) {
  for (const end = Date.now() + patience; Date.now() < end; await sleep(50)) {
    const answer = await ask();
    if (answer) return answer;
  }
  throw new Error(`waited ${patience} ms until ${what}`);
}

// called makes a promise of a function that takes a callback alone.
function called(start) {
  return new Promise((resolve, reject) => {
    start((error, result) => (error ? reject(error) : resolve(result)));
  });
}

function unique(prefix) {
  return `${prefix}-${randomUUID().slice(0, 8)}`;
}

// later does something at the end of a case: what was asked for last comes first.
const cleanups = new WeakMap();

function later(t, cleanup) {
  if (!cleanups.has(t)) {
    const stack = [];
    cleanups.set(t, stack);
    t.after(async () => {
      const errors = [];
      for (const one of stack.reverse()) await Promise.resolve().then(one).catch((error) => errors.push(error));
      if (errors.length > 0) throw errors[0];
    });
  }
  cleanups.get(t).push(cleanup);
}

// closing has something close with the case.
function closing(t, opened) {
  later(t, () => opened.close());
  return opened;
}

// newDevice registers a device for the length of a case.
async function newDevice(t, identity = {}) {
  const { responseBody } = await registry.create({ deviceId: unique('device'), ...identity });
  later(t, () => registry.delete(responseBody.deviceId).catch((error) => {
    if (error.name !== 'DeviceNotFoundError') throw error; // the case has removed it
  }));
  return responseBody;
}

function deviceString({ deviceId, authentication: { symmetricKey } }, key = symmetricKey.primaryKey) {
  return `HostName=${host};DeviceId=${deviceId};SharedAccessKey=${key}`;
}

function certificateString({ deviceId }) {
  return `HostName=${host};DeviceId=${deviceId};x509=true`;
}

// token makes a shared access signature that ends in so many seconds.
function token(resource, policy, key, seconds) {
  return SharedAccessSignature.create(resource, policy, key, Math.floor(Date.now() / 1000) + seconds).toString();
}

// prepare has a device's client fail instead of trying again, and closes it when the
// case ends.
function prepare(t, client) {
  client.setRetryPolicy(new NoRetry());
  client.on('error', (error) => t.diagnostic(`device client: ${error}`));
  return closing(t, client);
}

// connect connects a device by its connection string.
async function connect(t, transport, text) {
  const client = prepare(t, DeviceClient.fromConnectionString(text, transport));
  await client.open();
  return client;
}

async function connectModule(t, transport, { deviceId, moduleId, authentication: { symmetricKey } }) {
  const text = `HostName=${host};DeviceId=${deviceId};ModuleId=${moduleId};SharedAccessKey=${symmetricKey.primaryKey}`;
  const client = prepare(t, ModuleClient.fromConnectionString(text, transport));
  await client.open();
  return client;
}

// Service is a service client for one file, with the feedback that arrives.
class Service {
  feedback = new Inbox();

  async open(transport) {
    this.client = ServiceClient.fromConnectionString(hubString, transport);
    this.client.setRetryPolicy(new NoRetry());
    await this.client.open();
    const { result: receiver } = await this.client.getFeedbackReceiver();
    receiver.on('message', (message) => {
      // The SDK has completed it already, whatever the program does with it.
      for (const record of JSON.parse(message.getData().toString())) this.feedback.put({ ...record, batch: message });
    });
  }

  close() {
    return this.client.close();
  }

  send(deviceId, message) {
    return this.client.send(deviceId, message);
  }

  // call calls a direct method and gives the device time to be ready for it.
  async call(deviceId, methodName, payload, target = []) {
    const { result } = await this.client.invokeDeviceMethod(deviceId, ...target, {
      methodName, payload, connectTimeoutInSeconds: 15, responseTimeoutInSeconds: 15,
    });
    return result;
  }

  outcome(messageId, limit) {
    return this.feedback.next(`feedback on ${messageId}`, (record) => record.originalMessageId === messageId, limit);
  }
}

// Events reads the telemetry of all devices from the built-in endpoint.
class Events {
  #inbox = new Inbox();

  open() {
    this.client = new EventHubConsumerClient('$Default', eventsString);
    this.client.subscribe({
      processEvents: async (events) => events.forEach((event) => this.#inbox.put(event)),
      processError: async (error) => console.error('events:', error.message),
    }, { startPosition: earliestEventPosition, maxBatchSize: 1, skipParsingBodyAsJson: true });
  }

  close() {
    return this.client.close();
  }

  // next is the next event of a device, or of one of its modules.
  next(deviceId, accept = () => true) {
    return this.#inbox.next(`an event of ${deviceId}`, (event) =>
      event.systemProperties['iothub-connection-device-id'] === deviceId && accept(event));
  }
}

module.exports = {
  Events, Inbox, Service, bounded, called, certificateString, closing, connect, connectModule, deviceString,
  eventsString, fields, host, hubString, later, newDevice, prepare, registry, serviceBusString, setting, suite,
  token, unique, until,
};
