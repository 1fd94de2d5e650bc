'use strict';

const { Amqp } = require('azure-iot-device-amqp');
const deviceCases = require('./devicecases.js');

deviceCases('devices over AMQP', Amqp, { connections: true, settle: true, methods: true, twins: true, modules: true });
