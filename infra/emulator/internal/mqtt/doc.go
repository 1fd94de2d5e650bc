// Package mqtt is the MQTT 3.1.1 front end of a hub: it lets devices connect,
// send telemetry, receive cloud-to-device messages and answer direct methods.
//
// An IoT Hub is no topic broker. It knows a handful of topics, and a PUBACK of
// it means that the message is stored; a PUBACK of the device completes a
// cloud-to-device message (IoT Hub docs: "Communicate with an IoT hub using the
// MQTT protocol"). So the session here is the package's own, above the packet
// codec of github.com/eclipse/paho.mqtt.golang/packets.
//
// A connection costs two goroutines. The reader takes packets and hands
// messages to the hub. The writer owns the way out: it writes what the reader
// and the hub's callbacks put in the outbox, fetches cloud-to-device messages,
// and ends the connection when the device's session or token ends.
//
// Kinder than the cloud: telemetry is never throttled. Not offered: module
// identities, X.509 authentication, and writing twins.
package mqtt
