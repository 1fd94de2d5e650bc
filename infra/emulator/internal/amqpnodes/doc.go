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
//	/devices/{d}/messages/events                IoT Hub devices: telemetry
//	/devices/{d}/messages/devicebound           IoT Hub devices: cloud-to-device messages
//	/devices/{d}/methods/devicebound            IoT Hub devices: direct methods, a pair of links
//	/devices/{d}/twin                           IoT Hub devices: twin, a pair of links
//	/devices/{d}/modules/{m}/...                IoT Hub modules: the same
//
// Every link but those of $cbs needs a claim for its address: from a token put
// to $cbs, from SASL PLAIN or, for devices, from the certificate that the peer
// showed in the TLS handshake.
package amqpnodes
