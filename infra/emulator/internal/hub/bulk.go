package hub

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
)

// MaxBulkItems is how many identities one bulk operation may name (IoT Hub docs:
// "Bulk registry - Update Registry").
const MaxBulkItems = 100

// BulkItem is what a bulk operation does to one device or module: an
// ExportImportDevice of the REST API.
type BulkItem struct {
	ID       string `json:"id"`
	ModuleID string `json:"moduleId"`
	// ETag is a condition of the modes that end with IfMatchETag.
	ETag string `json:"eTag"`
	// ImportMode says what to do; case doesn't matter.
	ImportMode     ImportMode     `json:"importMode"`
	Status         Status         `json:"status"`
	StatusReason   *string        `json:"statusReason"`
	Authentication Authentication `json:"authentication"`
	Capabilities   Capabilities   `json:"capabilities"`
	DeviceScope    string         `json:"deviceScope"`
	ParentScopes   []string       `json:"parentScopes"`
	// ManagedBy is for modules only.
	ManagedBy *string `json:"managedBy"`
	// TwinETag is a condition of updateTwinIfMatchETag.
	TwinETag string `json:"twinETag"`
	TwinPatch
}

// ImportMode is what a bulk operation does to one identity.
type ImportMode string

// Modes (IoT Hub docs: "Import and export IoT Hub device identities in bulk"). A
// condition that is empty matches every version: amenzhinsky/iothub sends none.
const (
	ImportCreate                ImportMode = "create"
	ImportUpdate                ImportMode = "update"
	ImportUpdateIfMatchETag     ImportMode = "updateIfMatchETag"
	ImportDelete                ImportMode = "delete"
	ImportDeleteIfMatchETag     ImportMode = "deleteIfMatchETag"
	ImportUpdateTwin            ImportMode = "updateTwin"
	ImportUpdateTwinIfMatchETag ImportMode = "updateTwinIfMatchETag"
)

var importModes = []ImportMode{
	ImportCreate, ImportUpdate, ImportUpdateIfMatchETag, ImportDelete,
	ImportDeleteIfMatchETag, ImportUpdateTwin, ImportUpdateTwinIfMatchETag,
}

// BulkResult is the BulkRegistryOperationResult of the REST API.
type BulkResult struct {
	IsSuccessful bool          `json:"isSuccessful"`
	Errors       []BulkError   `json:"errors"`
	Warnings     []BulkWarning `json:"warnings"`
}

// BulkError says why nothing was done to one identity.
type BulkError struct {
	DeviceID string `json:"deviceId"`
	// ErrorCode is a number: amenzhinsky/iothub reads no other form.
	ErrorCode   Code   `json:"errorCode"`
	ErrorStatus string `json:"errorStatus"`
	ModuleID    string `json:"moduleId,omitempty"`
	// Operation is the import mode of the item.
	Operation ImportMode `json:"operation"`
}

// BulkWarning says what was not done of an operation that succeeded.
type BulkWarning struct {
	DeviceID      string `json:"deviceId"`
	WarningCode   string `json:"warningCode"`
	WarningStatus string `json:"warningStatus"`
}

// warningNoTwin is the one warning that there is.
const warningNoTwin = "DeviceRegisteredWithoutTwin"

// Bulk creates, changes and deletes up to 100 identities. What can't be done to
// one of them is an error in the result and leaves the others as they are.
//
// Each identity counts as one operation on the registry
// (github.com/Azure/device-simulation-dotnet issue 167), and the gate refuses the
// call as a whole (github.com/Azure-Samples/Iot-Telemetry-Simulator issue 39).
//
// Errors, of the whole call: CodeTooManyDevices.
func (h *Hub) Bulk(ctx context.Context, items []BulkItem) (BulkResult, error) {
	if len(items) > MaxBulkItems {
		return BulkResult{}, Errorf(CodeTooManyDevices, "the request names more than %d identities", MaxBulkItems)
	}
	parts := make([]Part, len(items))
	for i := range items {
		parts[i].Target = items[i].target()
	}
	if err := h.admitAll(OpRegistry, parts); err != nil {
		return BulkResult{}, err
	}
	if err := ctx.Err(); err != nil {
		return BulkResult{}, err
	}
	outcomes := make([]error, len(items))
	var wg sync.WaitGroup
	for _, group := range byDevice(items, outcomes) {
		// Side by side, so that all share the writes to the disk.
		wg.Go(func() {
			for _, i := range group {
				outcomes[i] = h.importItem(ctx, &items[i])
			}
		})
	}
	wg.Wait()
	return bulkResult(items, outcomes), nil
}

// byDevice returns the indices of the items of each device, in their order. An
// item whose identity another item names too gets its error instead.
func byDevice(items []BulkItem, outcomes []error) map[string][]int {
	named := make(map[Target]int, len(items))
	for i := range items {
		named[items[i].target()]++
	}
	groups := make(map[string][]int, len(items))
	for i := range items {
		t := items[i].target()
		if named[t] > 1 {
			outcomes[i] = Errorf(CodeDuplicateDevice, "%s is named %d times", t, named[t])
			continue
		}
		groups[t.DeviceID] = append(groups[t.DeviceID], i)
	}
	return groups
}

func bulkResult(items []BulkItem, outcomes []error) BulkResult {
	r := BulkResult{IsSuccessful: true, Errors: []BulkError{}, Warnings: []BulkWarning{}}
	for i, err := range outcomes {
		var twinless *twinlessError
		switch {
		case err == nil:
		case errors.As(err, &twinless):
			r.Warnings = append(r.Warnings, BulkWarning{
				DeviceID: items[i].ID, WarningCode: warningNoTwin, WarningStatus: AsError(twinless.cause).Message,
			})
		default:
			r.IsSuccessful = false
			e := AsError(err)
			r.Errors = append(r.Errors, BulkError{
				DeviceID: items[i].ID, ErrorCode: e.Code, ErrorStatus: e.Message, ModuleID: items[i].ModuleID, Operation: items[i].ImportMode,
			})
		}
	}
	return r
}

// twinlessError is the outcome of a creation whose twin couldn't be written.
type twinlessError struct{ cause error }

func (e *twinlessError) Error() string { return "registered without twin: " + e.cause.Error() }

func (i *BulkItem) target() Target { return Target{DeviceID: i.ID, ModuleID: i.ModuleID} }

// identity returns what the item says of the identity.
func (i *BulkItem) identity() Identity {
	if i.ModuleID != "" {
		return Module{DeviceID: i.ID, ModuleID: i.ModuleID, ManagedBy: i.ManagedBy, Authentication: i.Authentication}.identity()
	}
	return Identity{
		DeviceID:       i.ID,
		Status:         i.Status,
		StatusReason:   i.StatusReason,
		Authentication: i.Authentication,
		Capabilities:   i.Capabilities,
		DeviceScope:    i.DeviceScope,
		ParentScopes:   i.ParentScopes,
	}
}

// condition reads an ETag, with or without quotes; none matches every version.
func condition(etag string) IfMatch {
	if etag = strings.Trim(etag, `"`); etag == "" {
		return AnyVersion
	}
	return IfMatch(etag)
}

// importItem does what one item says.
func (h *Hub) importItem(ctx context.Context, i *BulkItem) error {
	switch i.ImportMode.known() {
	case ImportCreate:
		return h.importNew(ctx, i)
	case ImportUpdate:
		return h.importUpdate(ctx, i, AnyVersion, AnyVersion)
	case ImportUpdateIfMatchETag:
		return h.importUpdate(ctx, i, condition(i.ETag), condition(i.TwinETag))
	case ImportDelete:
		return h.importDelete(i, AnyVersion)
	case ImportDeleteIfMatchETag:
		return h.importDelete(i, condition(i.ETag))
	case ImportUpdateTwin:
		return h.importTwin(ctx, i, AnyVersion)
	case ImportUpdateTwinIfMatchETag:
		return h.importTwin(ctx, i, condition(i.TwinETag))
	}
	return Errorf(CodeArgumentInvalid, "import mode %q is none of %v", i.ImportMode, importModes)
}

// known returns the mode in the case of its constant, or nothing.
func (m ImportMode) known() ImportMode {
	for _, known := range importModes {
		if strings.EqualFold(string(m), string(known)) {
			return known
		}
	}
	return ""
}

func (h *Hub) importNew(ctx context.Context, i *BulkItem) error {
	create := h.createDevice
	if i.ModuleID != "" {
		create = h.createModule
	}
	if _, err := create(i.identity()); err != nil {
		return err
	}
	if err := h.importTwin(ctx, i, AnyVersion); err != nil {
		return &twinlessError{err}
	}
	return nil
}

func (h *Hub) importUpdate(ctx context.Context, i *BulkItem, match, twinMatch IfMatch) error {
	update := h.updateDevice
	if i.ModuleID != "" {
		update = h.updateModule
	}
	if _, err := update(i.identity(), match); err != nil {
		return err
	}
	return h.importTwin(ctx, i, twinMatch)
}

func (h *Hub) importDelete(i *BulkItem, match IfMatch) error {
	if i.ModuleID != "" {
		return h.deleteModule(i.target(), match)
	}
	return h.deleteDevice(i.ID, match)
}

// importTwin overwrites the parts of the twin that the item carries. Reported
// properties are the device's own and ignored.
func (h *Hub) importTwin(ctx context.Context, i *BulkItem, match IfMatch) error {
	if absent(i.Tags) && absent(i.Properties.Desired) {
		_, err := h.principal(i.target())
		return err
	}
	_, err := h.ReplaceTwin(ctx, i.target(), i.TwinPatch, match)
	return err
}

// absent reports whether a part of a twin was left out, or is null.
func absent(part json.RawMessage) bool { return len(part) == 0 || string(part) == "null" }
