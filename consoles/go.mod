module github.com/hubjobs/hubjobs/consoles

go 1.26.8

require (
	github.com/Azure/go-amqp v0.18.1
	github.com/amenzhinsky/iothub v0.9.1
	github.com/eclipse/paho.mqtt.golang v1.5.1
	github.com/urfave/cli/v2 v2.27.7
	go.uber.org/goleak v1.3.0
)

require (
	github.com/cpuguy83/go-md2man/v2 v2.0.7 // indirect
	github.com/gorilla/websocket v1.5.3 // indirect
	github.com/russross/blackfriday/v2 v2.1.0 // indirect
	github.com/xrash/smetrics v0.0.0-20240521201337-686a1a2994c1 // indirect
	golang.org/x/net v0.44.0 // indirect
	golang.org/x/sync v0.17.0 // indirect
)
