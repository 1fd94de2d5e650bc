// Package amqpnodes holds the AMQP nodes of the emulator: what the addresses of
// links lead to on the endpoints of an IoT Hub, a Service Bus namespace and an
// Event Hubs namespace. One listener may serve all three, because their
// addresses do not overlap.
//
//	$cbs                                        tokens for the connection
//	{queue}, {topic}                            Service Bus: send; receive from queues
//	{topic}/Subscriptions/{s}                   Service Bus: receive
//	.../$DeadLetterQueue                        Service Bus: receive what was dead-lettered
//	{entity}/$management                        Service Bus: renew, peek, schedule, settle
//	$management                                 Event Hubs: properties
//	{hub}/ConsumerGroups/{g}/Partitions/{p}     Event Hubs: receive
//	{hub}, {hub}/Partitions/{p}                 Event Hubs: send
//	/messages/devicebound                       IoT Hub: cloud-to-device messages
//	/messages/serviceBound/feedback             IoT Hub: delivery feedback
//	/messages/serviceBound/filenotifications    IoT Hub: attaches, and stays silent
//	/messages/events[/...]                      IoT Hub: redirect to the events endpoint
//
// Every link but those of $cbs needs a claim for its address: from a token put
// to $cbs, or from SASL PLAIN.
package amqpnodes
