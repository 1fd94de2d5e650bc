package command

import (
	"context"
	"errors"
	"fmt"

	"github.com/hubjobs/hubjobs/azure/credential"
	"github.com/hubjobs/hubjobs/azure/envfile"
	"github.com/hubjobs/hubjobs/azure/servicebus"
	"github.com/hubjobs/hubjobs/job"
	"github.com/hubjobs/hubjobs/starter/deadletters"
)

// Settings of the deadletter commands.
const (
	variableBus          = "SERVICEBUS_CONNECTION_STRING" // of a shared access policy with send and listen
	variableBusNamespace = "SERVICEBUS_NAMESPACE"
	variableClientID     = "AZURE_CLIENT_ID"
)

func openBus(s *envfile.Settings) (*servicebus.Client, error) {
	roots, err := credential.RootCAs(s.Get(variableCAFile))
	if err != nil {
		return nil, err
	}
	cfg := servicebus.Config{ConnectionString: s.Get(variableBus), RootCAs: roots}
	if cfg.ConnectionString != "" {
		return servicebus.New(cfg)
	}
	if cfg.Namespace = s.Get(variableBusNamespace); cfg.Namespace == "" {
		return nil, missing(variableBus)
	}
	if cfg.Credential, err = credential.Azure(s.Get(variableClientID)); err != nil {
		return nil, err
	}
	return servicebus.New(cfg)
}

// explainBus says in one line what to do about an error of the Service Bus. One that concerns a single dead letter says so
// itself.
func explainBus(q *deadletters.Queue, err error) error {
	var dead *deadletters.MissingError
	switch {
	case errors.As(err, &dead):
		return fmt.Errorf("%w (starter deadletter list shows all)", err)
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, job.ErrNotFound):
		return fmt.Errorf("the Service Bus namespace has no %s: name another with --queue or --subscription", q)
	case errors.Is(err, job.ErrUnauthorized):
		return fmt.Errorf("the Service Bus refuses access to %s: the settings need a key, or a role, that may listen and send", q)
	case errors.Is(err, job.ErrUnavailable):
		return fmt.Errorf(`%w (is it running? "go run ./infra/local up" runs a local one)`, err)
	}
	return err
}
