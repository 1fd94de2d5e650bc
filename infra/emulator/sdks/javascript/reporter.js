'use strict';

// Reports each case as one line of JSON, which the Go test of the folder above
// turns into a test of its own, and each suite when it is over.
module.exports = async function* report(events) {
  for await (const { type, data } of events) {
    if (type !== 'test:pass' && type !== 'test:fail') continue;
    if (data.details.type !== 'suite') {
      yield line(outcome(type, data), data);
      continue;
    }
    // A suite fails with its cases, but also by itself, in a hook or by its timeout.
    if (type === 'test:fail' && data.details.error?.failureType !== 'subtestsFailed') yield line(outcome(type, data), data);
    if (data.nesting === 0) yield line({ outcome: 'ended' }, data);
  }
};

function outcome(type, { skip, details }) {
  if (skip !== undefined && skip !== false) return { outcome: 'skipped', detail: String(skip) };
  if (type === 'test:pass') return { outcome: 'passed' };
  return { outcome: 'failed', detail: text(details.error) };
}

// text leaves out the rest of an error: SDKs attach sockets to theirs.
function text(error) {
  const cause = error?.cause ?? error;
  const body = cause?.responseBody ? `\nbody of the response: ${cause.responseBody}` : '';
  return (cause?.stack ?? String(cause)) + body;
}

function line(result, { name, details }) {
  return JSON.stringify({ name, milliseconds: details.duration_ms, ...result }) + '\n';
}
