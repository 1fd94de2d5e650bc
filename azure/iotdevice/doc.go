// Package iotdevice connects one device to an IoT Hub over MQTT 3.1.1 and keeps it connected.
//
// Every connection is a new client of paho.mqtt.golang with a fresh shared access signature: paho's own reconnecting
// would repeat the old one. The session is persistent and acknowledgements are made here, so a cloud-to-device message
// leaves the hub only after the program has handled it, and comes again after any failure. Handlers and readers on the
// other side must therefore take repeats, which they know by the message ID.
//
// All errors are of type [job.Error].
package iotdevice
