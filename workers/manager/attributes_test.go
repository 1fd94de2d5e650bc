package manager

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"go.temporal.io/api/serviceerror"
	"google.golang.org/grpc"

	"github.com/hubjobs/hubjobs/job"
)

// operator is a server with some search attributes.
type operator struct {
	operatorservice.OperatorServiceClient
	has       map[string]enumspb.IndexedValueType
	added     []string
	list, add error
}

func (o *operator) ListSearchAttributes(context.Context, *operatorservice.ListSearchAttributesRequest,
	...grpc.CallOption) (*operatorservice.ListSearchAttributesResponse, error) {
	return &operatorservice.ListSearchAttributesResponse{CustomAttributes: o.has}, o.list
}

func (o *operator) AddSearchAttributes(_ context.Context, in *operatorservice.AddSearchAttributesRequest,
	_ ...grpc.CallOption) (*operatorservice.AddSearchAttributesResponse, error) {
	o.added = slices.Sorted(maps.Keys(in.GetSearchAttributes()))
	return &operatorservice.AddSearchAttributesResponse{}, o.add
}

func TestRegisterSearchAttributes(t *testing.T) {
	t.Parallel()
	keyword := enumspb.INDEXED_VALUE_TYPE_KEYWORD
	both := []string{job.SearchAttributeStatus, job.SearchAttributeStep}
	for name, c := range map[string]struct {
		server *operator
		added  []string
		err    string // part of the error
		log    string // part of the log
	}{
		"a fresh namespace":  {&operator{}, both, "", ""},
		"one is there":       {&operator{has: map[string]enumspb.IndexedValueType{both[0]: keyword, "Other": keyword}}, both[1:], "", ""},
		"both are there":     {&operator{has: map[string]enumspb.IndexedValueType{both[0]: keyword, both[1]: keyword}}, nil, "", ""},
		"another was faster": {&operator{add: serviceerror.NewAlreadyExists("there")}, both, "", ""},
		"a server that lets nobody": {&operator{list: serviceerror.NewPermissionDenied("no", "")}, nil, "",
			`create HubjobsStatus and HubjobsStep, both of type Keyword, in namespace \"ns\" by hand`},
		"a server without the service": {&operator{add: serviceerror.NewUnimplemented("no")}, both, "", "by hand"},
		"a server that can't":          {&operator{add: serviceerror.NewUnavailable("down")}, both, "by hand", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			err := registerSearchAttributes(t.Context(), c.server, "ns", slog.New(slog.NewTextHandler(&log, nil)))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("got error %v, want %q", err, c.err)
			}
			if !slices.Equal(c.server.added, c.added) {
				t.Errorf("added %v, want %v", c.server.added, c.added)
			}
			if !strings.Contains(log.String(), c.log) || (log.Len() == 0) != (c.log == "") {
				t.Errorf("logged %q, want %q", log.String(), c.log)
			}
		})
	}
}

func TestRunRefusesToStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		settings Settings
		want     string
	}{
		"without an API key":    {Settings{}, "API key"},
		"with limits of no hub": {Settings{APIKey: key, Limits: Limits{Tier: "S9"}}, `"S9"`},
		"without a hub":         {Settings{APIKey: key}, "connection string"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := Run(t.Context(), c.settings); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want something about %q", err, c.want)
			}
		})
	}
}
