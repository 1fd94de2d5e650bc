package amqpnodes

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// sasTypes are the names that clients give to shared access signatures: the
// Azure SDKs for Go and Node.js the first, the IoT SDK for C# the second.
var sasTypes = []string{"servicebus.windows.net:sastoken", "azure-devices.net:sastoken"}

// putToken answers requests to $cbs (AMQP Claims-based Security 1.0; azservicebus
// v1.11 internal/cbs.go).
func (h *handler) putToken(_ context.Context, r *request) response {
	if r.operation != "put-token" {
		return failure(http.StatusBadRequest, amqp.CondNotImplemented, "$cbs knows the operation put-token only")
	}
	token, ok := r.msg.Value.(string)
	if !ok {
		return failure(http.StatusBadRequest, amqp.CondInvalidField, "the body of put-token must be a string")
	}
	if !isSAS(r.property("type")) || strings.HasPrefix(token, "Bearer ") {
		return failure(http.StatusUnauthorized, amqp.CondUnauthorizedAccess,
			"the emulator accepts shared access signatures only; use a connection string")
	}
	g, err := h.nodes.verify(token)
	if err != nil {
		h.log.Warn("token refused", "audience", r.property("name"), "error", err)
		if errors.Is(err, sas.ErrUnknownDevice) {
			// The SDKs tell a device that is not registered from one with a
			// wrong key by it.
			return failure(http.StatusNotFound, amqp.CondNotFound, err.Error())
		}
		return failure(http.StatusUnauthorized, amqp.CondUnauthorizedAccess, err.Error())
	}
	if g.realm.kind != hubRealm && !h.nodes.exists(r.property("name")) {
		// Service Bus finds this out here, and azservicebus has an error code
		// for it that it gives for no refused attach (internal/errors.go).
		return failure(http.StatusNotFound, amqp.CondNotFound,
			"the messaging entity "+r.property("name")+" could not be found; entities come from the emulator's configuration")
	}
	if err := h.claims.put(g); err != nil {
		return failure(http.StatusForbidden, amqp.CondResourceLimitExceeded, err.Error())
	}
	return response{status: http.StatusOK, description: "OK"}
}

// exists reports whether the entity of an audience, a URL, exists. An audience
// without path is that of the whole namespace.
func (n *Nodes) exists(audience string) bool {
	if !strings.Contains(audience, "://") {
		return true // a host alone
	}
	addr := parseAddress(audience)
	switch addr.kind {
	case kindConsumer, kindPartition, kindManagement, kindEntity:
	default:
		return true
	}
	if log, _ := n.eventLog(addr.entity); log != nil {
		return true
	}
	if n.cfg.Namespace == nil {
		return false
	}
	if _, err := n.cfg.Namespace.Target(addr.entity); err == nil {
		return true
	}
	q, err := n.cfg.Namespace.Source(addr.entity)
	return err == nil && q != nil
}

func isSAS(tokenType string) bool {
	for _, t := range sasTypes {
		if strings.EqualFold(t, tokenType) {
			return true
		}
	}
	return false
}
