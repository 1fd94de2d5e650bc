// Command benchmark measures the emulator beside well-known brokers, in one run
// on one machine: device-to-cloud messages at QoS 1 beside Mosquitto, and queue
// messages, sent, received under peek-lock and completed over AMQP 1.0, beside
// RabbitMQ with its AMQP 1.0 plug-in. It also measures the emulator's memory
// under ten thousand idle devices and a thousand AMQP links.
//
// All servers run as processes of their own, on free ports of the loopback
// interface and in temporary directories, and the same client code drives both
// sides. Rounds alternate, so that what else the machine does hits both sides
// alike, and only ratios are worth comparing between runs. A broker that isn't
// installed is left out, with a word.
package main
