package temporal

import (
	"context"
	"fmt"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/client"
)

// pollInterval is how often a start asks whether something is ready yet.
const pollInterval = 20 * time.Millisecond

// prepareNamespace waits until the frontend serves the namespace and registers its search attributes.
func (s *Server) prepareNamespace(ctx context.Context, namespace string, attributes map[string]enumspb.IndexedValueType) error {
	c, err := client.NewLazyClient(client.Options{HostPort: s.address, Namespace: namespace, Logger: quietLogger(s.logger)})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := poll(ctx, func(ctx context.Context) error { return ready(ctx, c, namespace) }); err != nil {
		return fmt.Errorf("does not answer: %w", err)
	}
	return registerSearchAttributes(ctx, c, namespace, attributes)
}

// ready asks for something that needs the frontend, its knowledge of the namespace and the database.
func ready(ctx context.Context, c client.Client, namespace string) error {
	_, err := c.WorkflowService().ListWorkflowExecutions(ctx, &workflowservice.ListWorkflowExecutionsRequest{
		Namespace: namespace, PageSize: 1,
	})
	return err
}

func registerSearchAttributes(
	ctx context.Context, c client.Client, namespace string, wanted map[string]enumspb.IndexedValueType,
) error {
	if len(wanted) == 0 {
		return nil
	}
	listed, err := c.OperatorService().ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return fmt.Errorf("list search attributes: %w", err)
	}
	missing := make(map[string]enumspb.IndexedValueType)
	for name, kind := range wanted {
		if _, ok := listed.GetCustomAttributes()[name]; !ok {
			missing[name] = kind
		}
	}
	if len(missing) == 0 {
		return nil
	}
	_, err = c.OperatorService().AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
		Namespace: namespace, SearchAttributes: missing,
	})
	if err != nil {
		return fmt.Errorf("register search attributes: %w", err)
	}
	return nil
}

// poll tries until it succeeds or ctx ends, and then returns the last failure.
func poll(ctx context.Context, try func(context.Context) error) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := try(attempt)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last answer: %w", context.Cause(ctx), err)
		case <-ticker.C:
		}
	}
}
