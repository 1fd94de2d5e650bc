'use strict';

const { Http } = require('azure-iot-device-http');
const deviceCases = require('./devicecases.js');

deviceCases('devices over HTTPS', Http, { settle: true, batch: true });
