package rest

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"regexp"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/devicejobs"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// transferTimeout is how long a client may take to send a body, or to take an
// answer.
const transferTimeout = 30 * time.Second

// Handler serves a hub's REST APIs. It sets the deadlines of bodies and answers
// itself: a direct method may take up to ten minutes in between, so a server with
// a ReadTimeout or WriteTimeout would cut it off.
type Handler struct {
	hub      *hub.Hub
	jobs     *devicejobs.Runner // nil without jobs
	verifier *sas.Verifier
	log      *slog.Logger
	routes   []route
	timeout  time.Duration
	identify func(context.Context, hub.Target) // nil if nobody wants to know
}

// Options tune a Handler. The zero value is ready to use.
type Options struct {
	// Jobs run the hub's jobs; nil means that there are none, and requests for
	// them are refused as not emulated.
	Jobs *devicejobs.Runner
	// Logger gets refused requests at level info and failures at level error;
	// nil means none.
	Logger *slog.Logger
	// TransferTimeout is how long a client may take to send a body, or to take
	// an answer; default 30 s.
	TransferTimeout time.Duration
	// Identify, if not nil, is told which device or module makes the request of
	// that context, once it has proved who it is.
	Identify func(context.Context, hub.Target)
}

// NewHandler returns a handler of the hub that checks tokens with the verifier,
// whose hosts must include the hub's name. A nil opts means defaults.
func NewHandler(h *hub.Hub, v *sas.Verifier, opts *Options) *Handler {
	if opts == nil {
		opts = &Options{}
	}
	handler := &Handler{hub: h, jobs: opts.Jobs, verifier: v, log: opts.Logger, timeout: cmp.Or(opts.TransferTimeout, transferTimeout), identify: opts.Identify}
	if handler.log == nil {
		handler.log = slog.New(slog.DiscardHandler)
	}
	handler.routes = handler.table()
	return handler
}

// request is an authorized request to a route.
type request struct {
	*http.Request
	control *http.ResponseController
	named
	auth hub.AuthMethod // on device-side routes
}

// response is what a route answers.
type response struct {
	status int // 0 means 200
	header http.Header
	// body is encoded as JSON, unless it is nil.
	body any
	// message is sent as it is, in place of body.
	message []byte
}

// apiVersion is a date, for preview versions with a suffix.
var apiVersion = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}(-preview)?$`)

// namespaceVersion is how requests to the HTTP APIs of Service Bus and Event Hubs
// give the version (azservicebus v1.11 internal/atom/entity_manager.go).
var namespaceVersion = regexp.MustCompile(`^\d{4}-\d{2}$`)

// errNamespaceAPI tells those that manage entities from those that look for a
// hub's resource: a missing one would look like an entity that isn't there.
var errNamespaceAPI = &notEmulatedError{"the HTTP API of Service Bus and Event Hubs (entities come from the emulator's configuration)"}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	// The server reads on after a refusal, in order to use the connection again.
	// A recorder in a test has no deadlines, and needs none.
	_ = control.SetReadDeadline(time.Now().Add(h.timeout))
	h.extend(w)
	segments, err := splitPath(r.URL)
	if err != nil {
		h.fail(w, r, nil, err)
		return
	}
	if namespaceVersion.MatchString(r.URL.Query().Get("api-version")) {
		h.fail(w, r, nil, errNamespaceAPI)
		return
	}
	found, names, err := h.find(r.Method, segments)
	if err != nil {
		h.fail(w, r, nil, err)
		return
	}
	auth, err := h.admit(r, found, segments, names)
	if err != nil {
		h.fail(w, r, found, err)
		return
	}
	answer, err := found.serve(r.Context(), request{Request: r, control: control, named: names, auth: auth})
	if err != nil {
		h.fail(w, r, found, err)
		return
	}
	h.answer(w, r, answer)
}
