package emulator_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"github.com/hubjobs/hubjobs/infra/emulator"
)

func Example() {
	ctx := context.Background()
	e, err := emulator.Start(ctx, emulator.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer e.Close()

	client, err := azservicebus.NewClientFromConnectionString(e.ServiceBusConnectionString(), nil)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close(ctx)
	sender, err := client.NewSender("jobs", nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := sender.SendMessage(ctx, &azservicebus.Message{Body: []byte("Job 1")}, nil); err != nil {
		log.Fatal(err)
	}
	receiver, err := client.NewReceiverForSubscription("jobs", "jobs", nil)
	if err != nil {
		log.Fatal(err)
	}
	messages, err := receiver.ReceiveMessages(ctx, 1, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(messages[0].Body))
	// Output: Job 1
}

func ExampleEmulator_InjectFault() {
	ctx := context.Background()
	e, err := emulator.Start(ctx, emulator.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer e.Close()

	// The first try is answered with "server busy".
	if _, err := e.InjectFault(emulator.Fault{Kind: emulator.FaultRefuse, Operation: "send", Entity: "jobs", Code: 503, Count: 1}); err != nil {
		log.Fatal(err)
	}
	client, err := azservicebus.NewClientFromConnectionString(e.ServiceBusConnectionString(), &azservicebus.ClientOptions{
		RetryOptions: azservicebus.RetryOptions{RetryDelay: time.Millisecond},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close(ctx)
	sender, err := client.NewSender("jobs", nil)
	if err != nil {
		log.Fatal(err)
	}
	if err := sender.SendMessage(ctx, &azservicebus.Message{Body: []byte("Job 1")}, nil); err != nil {
		log.Fatal(err)
	}
	fmt.Println("sent, with faults left:", len(e.Faults()))
	// Output: sent, with faults left: 0
}
