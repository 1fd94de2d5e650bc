// Package azure is the parent of the adapters to Azure's services: iothub (the hub's service side), iotdevice (one device
// over MQTT), servicebus, eventhubs, and credential, with what they prove their identity. Beside them, envfile reads the
// files in which a local run leaves its settings.
//
// An adapter is a thin layer over an SDK that speaks in terms of package job, and classifies each error once into one of
// job's kinds. It imports job and SDKs only; who uses it declares the interface that it needs. By configuration alone it
// talks to Azure or to a local emulator. The tests here run one suite of behaviours against both.
package azure
