package manager

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"

	"github.com/hubjobs/hubjobs/job"
)

const attributesTimeout = 30 * time.Second

// registerSearchAttributes makes sure that the namespace has the search attributes that Job workflows set: without them
// no Job workflow can go on. Where the server doesn't let its clients register any, they must have been made by hand,
// which can't be checked there either; then one line says so.
func registerSearchAttributes(ctx context.Context, server operatorservice.OperatorServiceClient, namespace string, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, attributesTimeout)
	defer cancel()
	err := addSearchAttributes(ctx, server, namespace)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("register the search attributes: %w: unless they exist, create %s and %s, both of type Keyword, in namespace %q by hand",
		err, job.SearchAttributeStatus, job.SearchAttributeStep, namespace)
	if refused(err) {
		log.Error(err.Error())
		return nil
	}
	return err
}

func addSearchAttributes(ctx context.Context, server operatorservice.OperatorServiceClient, namespace string) error {
	missing := map[string]enumspb.IndexedValueType{
		job.SearchAttributeStatus: enumspb.INDEXED_VALUE_TYPE_KEYWORD,
		job.SearchAttributeStep:   enumspb.INDEXED_VALUE_TYPE_KEYWORD,
	}
	has, err := server.ListSearchAttributes(ctx, &operatorservice.ListSearchAttributesRequest{Namespace: namespace})
	if err != nil {
		return err
	}
	for name := range has.GetCustomAttributes() {
		delete(missing, name)
	}
	if len(missing) == 0 {
		return nil
	}
	_, err = server.AddSearchAttributes(ctx, &operatorservice.AddSearchAttributesRequest{
		Namespace: namespace, SearchAttributes: missing,
	})
	var exists *serviceerror.AlreadyExists
	if errors.As(err, &exists) { // managers that start together
		return nil
	}
	return err
}

// refused reports whether the server doesn't offer this to its clients, as managed ones don't.
func refused(err error) bool {
	var denied *serviceerror.PermissionDenied
	var unimplemented *serviceerror.Unimplemented
	return errors.As(err, &denied) || errors.As(err, &unimplemented)
}
