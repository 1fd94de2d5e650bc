package emulator_test

import (
	"context"
	"fmt"
	"log"

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
