// Package workflows holds the decisions of hubjobs as Temporal workflows:
//
//   - Job carries one job from its negotiation to the deregistration of its device identities. It routes the messages of
//     both sides, keeps the receipt ladder of each (accepted, delivered, read), and sends again what was not read in time.
//   - Solve runs a job's steps on a solver's host and answers for the solver's side of the conversation.
//   - Relay routes the messages of a pair of devices that have no job.
//
// Nothing here does I/O: activities are called by the typed references of package job. Every message is applied once,
// by its ID, however often a signal repeats it.
package workflows
