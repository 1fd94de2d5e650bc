// Package mqtt is the MQTT 3.1.1 front end of a hub: it lets devices and modules
// connect, send telemetry, receive cloud-to-device messages, answer direct
// methods and use their twins.
//
// An IoT Hub is no topic broker. It knows a handful of topics, and a PUBACK of
// it means that the message is stored; a PUBACK of the device completes a
// cloud-to-device message (IoT Hub docs: "Communicate with an IoT hub using the
// MQTT protocol"). So the session here is the package's own, above the packet
// codec of github.com/eclipse/paho.mqtt.golang/packets.
//
// An idle connection costs one goroutine and no buffers, because there may be
// ten thousand. That goroutine is the reader: it takes packets and hands messages
// to the hub. The writer owns the way out, and is there while it has something to
// do: it writes what the reader and the hub's callbacks put in the outbox, and
// fetches cloud-to-device messages. Twin requests, which wait for the disk, have
// a third goroutine as long as there are any.
//
// The subscriptions of a persistent session (clean session 0) are kept with the
// identity: they outlive the process and go with the identity.
//
// Where the cloud's documentation says nothing: the return code for whoever may
// not connect is 5, a filter that the hub doesn't know is refused with 0x80, and
// a device that is throttled is held up for 10 s before it is disconnected.
// Kinder than the cloud: all cloud-to-device messages that wait are sent at once.
// Not offered: the inputs and outputs of Edge modules.
package mqtt
