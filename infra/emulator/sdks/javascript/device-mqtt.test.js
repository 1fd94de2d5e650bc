'use strict';

const { Mqtt } = require('azure-iot-device-mqtt');
const deviceCases = require('./devicecases.js');

deviceCases('devices over MQTT', Mqtt, { connections: true, methods: true, twins: true, modules: true, models: true });
