package hub

import (
	"encoding/json"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/twin"
)

// twinDocument is a twin as queries see it: the fields of Twin, of which it makes
// only what is asked for.
type twinDocument struct {
	principal *principal
	doc       *twin.Document
	id        *Identity
}

// Lookup implements query.Document.
func (d *twinDocument) Lookup(path []string) (any, bool) {
	switch path[0] {
	case "deviceId":
		return d.principal.DeviceID, len(path) == 1
	case "moduleId":
		return d.principal.ModuleID, len(path) == 1 && d.principal.ModuleID != ""
	case "tags":
		return d.twin().Lookup(twin.Tags, path[1:])
	case "properties":
		return d.properties(path[1:])
	case "etag":
		return d.twin().ETag(), len(path) == 1
	case "version":
		return d.twin().Version(), len(path) == 1
	}
	return d.field(path)
}

// twin reads the document once, so that one query sees one state of it.
func (d *twinDocument) twin() *twin.Document {
	if d.doc == nil {
		d.doc = d.principal.document()
	}
	return d.doc
}

func (d *twinDocument) properties(path []string) (any, bool) {
	switch {
	case len(path) == 0:
		return TwinProperties{Desired: d.twin().Desired(), Reported: d.twin().Reported()}, true
	case path[0] == "desired":
		return d.twin().Lookup(twin.Desired, path[1:])
	case path[0] == "reported":
		return d.twin().Lookup(twin.Reported, path[1:])
	}
	return nil, false
}

// field returns a field that comes from the identity.
func (d *twinDocument) field(path []string) (any, bool) {
	if d.id == nil {
		id := d.principal.snapshot()
		d.id = &id
	}
	id := d.id
	if len(path) == 2 {
		return id.nested(path[0], path[1])
	}
	if len(path) > 2 {
		return nil, false
	}
	switch path[0] {
	case "deviceEtag":
		return id.ETag, true
	case "status":
		return string(id.Status), true
	case "statusReason":
		return text(id.StatusReason), id.StatusReason != nil
	case "statusUpdateTime":
		return id.StatusUpdatedTime.text(), true
	case "connectionState":
		return string(id.ConnectionState), true
	case "lastActivityTime":
		return id.LastActivityTime.text(), true
	case "cloudToDeviceMessageCount":
		return id.CloudToDeviceMessageCount, true
	case "authenticationType":
		return id.Authentication.Type, true
	case "x509Thumbprint":
		return id.Authentication.X509Thumbprint, true
	case "capabilities":
		return id.Capabilities, true
	case "deviceScope":
		return id.DeviceScope, id.DeviceScope != ""
	case "parentScopes":
		return list(id.ParentScopes), id.ParentScopes != nil
	}
	return nil, false
}

func (id *Identity) nested(field, name string) (any, bool) {
	switch field + "." + name {
	case "capabilities.iotEdge":
		return id.Capabilities.IotEdge, true
	case "x509Thumbprint.primaryThumbprint":
		return text(id.Authentication.X509Thumbprint.PrimaryThumbprint), true
	case "x509Thumbprint.secondaryThumbprint":
		return text(id.Authentication.X509Thumbprint.SecondaryThumbprint), true
	}
	return nil, false
}

// text returns what a pointer leads to, nil for null.
func text(s *string) any {
	if s == nil {
		return nil
	}
	return *s
}

// text returns the time as it stands in JSON, without quotes.
func (t Time) text() string {
	b, err := json.Marshal(t)
	if err != nil {
		return "" // it never fails
	}
	return strings.Trim(string(b), `"`)
}

func list(values []string) []any {
	items := make([]any, len(values))
	for i, v := range values {
		items[i] = v
	}
	return items
}
