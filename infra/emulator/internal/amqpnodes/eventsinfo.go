package amqpnodes

import (
	"context"
	"net/http"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqp"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/amqpserver"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/broker"
)

// openEventsManagement opens $management of Event Hubs. Which event hub is meant
// stands in each request, and so does the check of the right to it.
func (h *handler) openEventsManagement(addr address, a *amqpserver.Attach) (amqpserver.Target, error) {
	return h.requests(addr, a, true, h.readEvents), nil
}

// readEvents answers READ (azeventhubs v2.0.2 mgmt.go). Its types matter: the
// client takes a mistyped value for a missing one.
func (h *handler) readEvents(_ context.Context, r *request) response {
	if r.operation != "READ" {
		return failure(http.StatusNotImplemented, amqp.CondNotImplemented, "$management knows the operation READ only")
	}
	name := r.property("name")
	log, _, err := h.admitEvents(name, name+"/$management")
	if err != nil {
		return failed(err)
	}
	switch kind := r.property("type"); kind {
	case "com.microsoft:eventhub":
		return response{status: http.StatusOK, description: "OK", body: eventHubInfo(log)}
	case "com.microsoft:partition":
		p, err := log.Partition(r.property("partition"))
		if err != nil {
			return failed(amqp.Errorf(amqp.CondNotFound, "%v", noPartition(log, r.property("partition"))))
		}
		return response{status: http.StatusOK, description: "OK", body: partitionInfo(log, p)}
	default:
		return failure(http.StatusBadRequest, condArgumentError, "the type of READ must be com.microsoft:eventhub or com.microsoft:partition")
	}
}

func eventHubInfo(log *broker.EventLog) map[string]any {
	ids := log.PartitionIDs()
	return map[string]any{
		"name":                  log.Name(),
		"type":                  "com.microsoft:eventhub",
		"created_at":            log.CreatedAt(),
		"partition_ids":         ids,
		"partition_count":       int32(len(ids)),
		"georeplication_factor": int32(1), // off
	}
}

func partitionInfo(log *broker.EventLog, p broker.PartitionProperties) map[string]any {
	return map[string]any{
		"name":                          log.Name(),
		"type":                          "com.microsoft:partition",
		"partition":                     p.ID,
		"begin_sequence_number":         p.BeginSequenceNumber,
		"last_enqueued_sequence_number": p.LastEnqueuedSequenceNumber,
		"last_enqueued_offset":          p.LastEnqueuedOffset,
		"last_enqueued_time_utc":        p.LastEnqueuedTime,
		"is_partition_empty":            p.Empty,
	}
}
