'use strict';

const { AmqpWs } = require('azure-iot-device-amqp');
const deviceCases = require('./devicecases.js');

deviceCases('devices over AMQP on WebSockets', AmqpWs, { connections: true, settle: true, methods: true, twins: true, modules: true });
