package role

// The Service Bus entities of the pipeline.
const (
	QueueDeviceMessages = "device-messages" // what devices send, routed here by the hub
	TopicJobs           = "jobs"
	SubscriptionJobs    = "jobs" // of TopicJobs, shared by all solvers
)
