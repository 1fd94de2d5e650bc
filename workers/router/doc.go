// Package router brings what devices send, and what became of the messages to them, from the hub's queues into the
// workflows. It is the link of the pipeline that may not lose anything: a message leaves its queue only after a workflow
// has it in its history, or into the dead-letter queue with a reason.
package router
