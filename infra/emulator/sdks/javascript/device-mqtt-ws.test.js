'use strict';

const { MqttWs } = require('azure-iot-device-mqtt');
const deviceCases = require('./devicecases.js');

deviceCases('devices over MQTT on WebSockets', MqttWs, { connections: true, methods: true, twins: true, modules: true, models: true });
