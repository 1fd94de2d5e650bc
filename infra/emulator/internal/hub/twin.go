package hub

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/twin"
)

// Twin is the twin of a device or module as the service side sees it.
type Twin struct {
	DeviceID                  string          `json:"deviceId"`
	ModuleID                  string          `json:"moduleId,omitempty"`
	ETag                      string          `json:"etag"`
	DeviceETag                string          `json:"deviceEtag"`
	Status                    Status          `json:"status"`
	StatusReason              *string         `json:"statusReason,omitempty"`
	StatusUpdateTime          Time            `json:"statusUpdateTime"`
	ConnectionState           ConnectionState `json:"connectionState"`
	LastActivityTime          Time            `json:"lastActivityTime"`
	CloudToDeviceMessageCount int             `json:"cloudToDeviceMessageCount"`
	AuthenticationType        string          `json:"authenticationType"`
	X509Thumbprint            X509Thumbprint  `json:"x509Thumbprint"`
	Version                   int64           `json:"version"`
	Tags                      json.RawMessage `json:"tags"`
	Properties                TwinProperties  `json:"properties"`
	Capabilities              Capabilities    `json:"capabilities"`
	DeviceScope               string          `json:"deviceScope,omitempty"`
	ParentScopes              []string        `json:"parentScopes,omitempty"`
}

// TwinProperties are the two halves of a twin.
type TwinProperties struct {
	Desired  json.RawMessage `json:"desired"`
	Reported json.RawMessage `json:"reported"`
}

// TwinPatch is what the service side may write of a twin. A part that is absent,
// or null, stays as it is.
type TwinPatch struct {
	Tags       json.RawMessage `json:"tags"`
	Properties struct {
		Desired json.RawMessage `json:"desired"`
	} `json:"properties"`
}

func (p TwinPatch) size() int { return len(p.Tags) + len(p.Properties.Desired) }

// GetTwin returns the twin of a device or module; CodeDeviceNotFound or
// CodeModuleNotFound.
func (h *Hub) GetTwin(t Target) (Twin, error) {
	if err := h.admit(OpTwinRead, t, 0); err != nil {
		return Twin{}, err
	}
	p, err := h.principal(t)
	if err != nil {
		return Twin{}, err
	}
	w := p.twin()
	h.MeterJSON(OpTwinRead, t, w)
	return w, nil
}

// PatchTwin merges a patch into tags and desired properties, where null deletes,
// and tells the session that watches desired properties. An empty match means any
// version.
//
// Errors: CodeDeviceNotFound, CodeModuleNotFound, CodePreconditionFailed,
// CodeArgumentInvalid for what a twin can't hold, CodeFormatError.
func (h *Hub) PatchTwin(ctx context.Context, t Target, p TwinPatch, match IfMatch) (Twin, error) {
	return h.writeTwin(ctx, t, p, match, (*twin.Document).Patch)
}

// ReplaceTwin is PatchTwin that leaves nothing of the parts that it writes.
func (h *Hub) ReplaceTwin(ctx context.Context, t Target, p TwinPatch, match IfMatch) (Twin, error) {
	return h.writeTwin(ctx, t, p, match, (*twin.Document).Replace)
}

// twinWriter is Patch or Replace of a document.
type twinWriter func(*twin.Document, twin.Write, time.Time) (*twin.Document, []byte, error)

func (h *Hub) writeTwin(ctx context.Context, t Target, patch TwinPatch, match IfMatch, write twinWriter) (Twin, error) {
	if err := h.admit(OpTwinUpdate, t, patch.size()); err != nil {
		return Twin{}, err
	}
	if err := ctx.Err(); err != nil {
		return Twin{}, err
	}
	p, err := h.principal(t)
	if err != nil {
		return Twin{}, err
	}
	// Held until the session has been told, so that it hears of changes in the
	// order of their versions.
	p.device.registry.Lock()
	defer p.device.registry.Unlock()
	if _, exists := p.current(); !exists {
		return Twin{}, notFound(t)
	}
	before := p.document()
	if match != "" && match != AnyVersion && string(match) != before.ETag() {
		return Twin{}, Errorf(CodePreconditionFailed, "the twin of %s has another ETag than If-Match says", t)
	}
	next, notice, err := write(before, twin.Write{Tags: patch.Tags, Desired: patch.Properties.Desired}, time.Now())
	if err != nil {
		return Twin{}, refuseTwin(err)
	}
	if err := p.keepTwin(before, next); err != nil {
		return Twin{}, err
	}
	if notice != nil {
		p.notifyDesired(notice, next.DesiredVersion())
	}
	return p.twin(), nil
}

// refuseTwin gives an error of package twin the hub's code.
func refuseTwin(err error) error {
	if errors.Is(err, twin.ErrFormat) {
		return Errorf(CodeFormatError, "%s", err)
	}
	return Errorf(CodeArgumentInvalid, "%s", err)
}

// document returns the twin, which a principal has from the beginning.
func (p *principal) document() *twin.Document {
	if d := p.doc.Load(); d != nil {
		return d
	}
	id, _ := p.current()
	return twin.New(createdAt(id.GenerationID))
}

// createdAt is when a generation ID was made, or zero if it is none of a hub.
func createdAt(generation string) time.Time {
	ticks, err := strconv.ParseInt(generation, 10, 64)
	if err != nil || ticks < epochTicks {
		return time.Time{}
	}
	const second = int64(time.Second / 100)
	ticks -= epochTicks
	return time.Unix(ticks/second, ticks%second*100).UTC()
}

// keepTwin makes a twin durable and then visible. The caller holds registry.
func (p *principal) keepTwin(before, next *twin.Document) error {
	if next == before {
		return nil
	}
	var value []byte
	if p.hub.store.Durable() {
		value = next.Encode()
	}
	if err := store.Commit(p.hub.store, store.Put(p.key(twinSuffix), value)); err != nil {
		return translate(err, CodeServerError)
	}
	p.doc.Store(next)
	return nil
}

func (p *principal) loadTwin(value []byte) error {
	d, err := twin.Decode(value)
	p.doc.Store(d)
	return err
}

// twin returns the twin with all that the hub adds to it.
func (p *principal) twin() Twin {
	id, d := p.snapshot(), p.document()
	return Twin{
		DeviceID:                  p.DeviceID,
		ModuleID:                  p.ModuleID,
		ETag:                      d.ETag(),
		DeviceETag:                id.ETag,
		Status:                    id.Status,
		StatusReason:              id.StatusReason,
		StatusUpdateTime:          id.StatusUpdatedTime,
		ConnectionState:           id.ConnectionState,
		LastActivityTime:          id.LastActivityTime,
		CloudToDeviceMessageCount: id.CloudToDeviceMessageCount,
		AuthenticationType:        id.Authentication.Type,
		X509Thumbprint:            id.Authentication.X509Thumbprint,
		Version:                   d.Version(),
		Tags:                      d.Tags(),
		Properties:                TwinProperties{Desired: d.Desired(), Reported: d.Reported()},
		Capabilities:              id.Capabilities,
		DeviceScope:               id.DeviceScope,
		ParentScopes:              id.ParentScopes,
	}
}

// notifyDesired tells the session that watches desired properties, if there is
// one. The cloud keeps nothing for others either: they read the twin when they
// come (IoT Hub docs: "Understand and use device twins in IoT Hub", Device
// reconnection flow).
func (p *principal) notifyDesired(patch []byte, version int64) {
	p.mu.Lock()
	s := p.session
	p.mu.Unlock()
	if s == nil {
		return
	}
	s.mu.Lock()
	deliver := s.desired
	s.mu.Unlock()
	if deliver != nil {
		deliver(patch, version)
	}
}

// ReadTwin returns the twin as its device or module sees it: desired and
// reported properties with $version and without $metadata.
func (s *Session) ReadTwin() ([]byte, error) {
	if err := s.principal.hub.admit(OpTwinRead, s.Target(), 0); err != nil {
		return nil, err
	}
	if err := s.Err(); err != nil {
		return nil, err
	}
	s.Touch()
	view := s.principal.document().DeviceView()
	s.principal.hub.meter(OpTwinRead, s.Target(), len(view))
	return view, nil
}

// UpdateReported merges a patch into the reported properties, where null deletes,
// and returns their version. base is the version that they must have before, as
// azure-iot-sdk-java asks for (DeviceTwin.java); 0 means any.
//
// Errors: CodePreconditionFailed, CodeArgumentInvalid for what a twin can't hold,
// CodeFormatError, or why the session ended.
func (s *Session) UpdateReported(ctx context.Context, patch []byte, base int64) (version int64, err error) {
	p := s.principal
	if err := p.hub.admit(OpTwinUpdate, s.Target(), len(patch)); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	p.device.registry.Lock()
	defer p.device.registry.Unlock()
	if err := s.Err(); err != nil {
		return 0, err
	}
	s.Touch()
	before := p.document()
	if base != 0 && base != before.ReportedVersion() {
		return 0, Errorf(CodePreconditionFailed, "reported properties of %s have version %d and not %d", p.Target, before.ReportedVersion(), base)
	}
	next, err := before.Report(patch, time.Now())
	if err != nil {
		return 0, refuseTwin(err)
	}
	return next.ReportedVersion(), p.keepTwin(before, next)
}

// WatchDesired makes deliver the way to tell the session of changes of the
// desired properties, until the session ends or it is called with nil. The patch
// carries $version; after a replacement it is all of them. A change is either
// delivered or in what ReadTwin returns afterwards, or both. deliver must neither
// block nor write the twin.
func (s *Session) WatchDesired(deliver func(patch []byte, version int64)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.desired = deliver
	}
}
