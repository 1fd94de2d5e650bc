// Package job is the contract between the parts of hubjobs: what a job, an update and a read receipt are, how they look
// on the wire, how devices, messages and workflows are named, and which activities, signals, queries and updates the
// workflows speak. It imports nothing else of the project, so that every other package may import it.
//
// Bodies are UTF-8 JSON with Pascal-case names ("Name", "CorrelationId", "Steps"), the form that C# applications of
// this pipeline read and write; decoding ignores case.
package job
