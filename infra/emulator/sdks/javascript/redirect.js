'use strict';

// Where the hub can't have the ports of the cloud, REDIRECTS says where connections
// to them go: host:port=host:port,... It stands in for an entry in the hosts file
// and a forwarded port, and leaves the SDKs and what they send as they are.
const net = require('node:net');

const redirects = new Map((process.env.REDIRECTS ?? '').split(',').filter(Boolean).map((pair) => pair.split('=')));

if (redirects.size > 0) {
  const { connect } = net.Socket.prototype;
  net.Socket.prototype.connect = function redirected(...args) {
    // net and tls hand over arguments that are normalized already: [[options, callback]].
    const [options, callback] = Array.isArray(args[0]) ? args[0] : net._normalizeArgs(args);
    const target = redirects.get(`${options.host}:${options.port}`);
    if (target === undefined) return connect.apply(this, args);
    const colon = target.lastIndexOf(':');
    return connect.call(this, { ...options, host: target.slice(0, colon), port: Number(target.slice(colon + 1)) }, callback);
  };
}
