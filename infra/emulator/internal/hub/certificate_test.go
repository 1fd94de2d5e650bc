package hub_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/store"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/x509test"
)

func expired(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }

func notYet(c *x509.Certificate) { c.NotBefore = time.Now().Add(30 * time.Minute) }

func forServers(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

func sha256Of(c *tls.Certificate) *string {
	sum := sha256.Sum256(c.Leaf.Raw)
	return new(strings.ToUpper(hex.EncodeToString(sum[:])))
}

func TestVerifyCertificate(t *testing.T) {
	t.Parallel()
	root := x509test.Issue(t, "root", nil, x509test.AsCA)
	middle := x509test.Issue(t, "middle", root, x509test.AsCA)
	foreign := x509test.Issue(t, "root", nil, x509test.AsCA)
	pool := x509.NewCertPool()
	pool.AddCert(root.Leaf)
	one, two, old := x509test.Issue(t, "one", nil), x509test.Issue(t, "two", nil), x509test.Issue(t, "old", nil, expired)
	thumbprints := func(primary, secondary *string) hub.Authentication {
		return hub.Authentication{X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: primary, SecondaryThumbprint: secondary}}
	}
	byCA := hub.Authentication{Type: "certificateAuthority"}
	chain := func(cs ...*tls.Certificate) []*x509.Certificate {
		var all []*x509.Certificate
		for _, c := range cs {
			all = append(all, c.Leaf)
		}
		return all
	}
	for name, tc := range map[string]struct {
		auth   hub.Authentication
		status hub.Status
		chain  []*x509.Certificate
		ok     bool
	}{
		"SHA-1, primary":                 {auth: thumbprints(x509test.Thumbprint(one), x509test.Thumbprint(two)), chain: chain(one), ok: true},
		"SHA-1, secondary":               {auth: thumbprints(x509test.Thumbprint(one), x509test.Thumbprint(two)), chain: chain(two), ok: true},
		"SHA-256, primary":               {auth: thumbprints(sha256Of(one), sha256Of(two)), chain: chain(one), ok: true},
		"SHA-256, secondary only":        {auth: thumbprints(nil, sha256Of(two)), chain: chain(two), ok: true},
		"signed by whomever":             {auth: thumbprints(x509test.Thumbprint(middle), nil), chain: chain(middle), ok: true},
		"another certificate":            {auth: thumbprints(x509test.Thumbprint(one), nil), chain: chain(two)},
		"thumbprint of the second":       {auth: thumbprints(x509test.Thumbprint(one), nil), chain: chain(two, one)},
		"no certificate":                 {auth: thumbprints(x509test.Thumbprint(one), nil)},
		"expired":                        {auth: thumbprints(x509test.Thumbprint(old), nil), chain: chain(old)},
		"disabled":                       {auth: thumbprints(x509test.Thumbprint(one), nil), status: "disabled", chain: chain(one)},
		"device with keys":               {auth: hub.Authentication{}, chain: chain(one)},
		"device without any":             {auth: hub.Authentication{Type: "none"}, chain: chain(one)},
		"signed by the root":             {auth: byCA, chain: chain(x509test.Issue(t, "d", root)), ok: true},
		"for clients":                    {auth: byCA, chain: chain(x509test.Issue(t, "d", root, x509test.ForClients)), ok: true},
		"signed by an intermediate":      {auth: byCA, chain: chain(x509test.Issue(t, "d", middle), middle), ok: true},
		"with the root sent too":         {auth: byCA, chain: chain(x509test.Issue(t, "d", middle), middle, root), ok: true},
		"intermediate missing":           {auth: byCA, chain: chain(x509test.Issue(t, "d", middle))},
		"another device":                 {auth: byCA, chain: chain(x509test.Issue(t, "e", root))},
		"name in another case":           {auth: byCA, chain: chain(x509test.Issue(t, "D", root))},
		"name of a module":               {auth: byCA, chain: chain(x509test.Issue(t, "d/m", root))},
		"another authority":              {auth: byCA, chain: chain(x509test.Issue(t, "d", foreign), foreign)},
		"signed by itself":               {auth: byCA, chain: chain(x509test.Issue(t, "d", nil))},
		"signed, expired":                {auth: byCA, chain: chain(x509test.Issue(t, "d", root, expired))},
		"signed, not valid yet":          {auth: byCA, chain: chain(x509test.Issue(t, "d", root, notYet))},
		"signed, for servers":            {auth: byCA, chain: chain(x509test.Issue(t, "d", root, forServers))},
		"signed, disabled":               {auth: byCA, status: "disabled", chain: chain(x509test.Issue(t, "d", root))},
		"signed, but known by its print": {auth: thumbprints(x509test.Thumbprint(one), nil), chain: chain(x509test.Issue(t, "d", root))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, store.Memory(), func(o *hub.Options) { o.DeviceCAs = pool })
			if _, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: tc.status, Authentication: tc.auth}); err != nil {
				t.Fatal(err)
			}
			got, err := h.VerifyCertificate(hub.Target{DeviceID: "d"}, tc.chain)
			if !tc.ok {
				wantCode(t, "verification", err, hub.CodeUnauthorized)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			check(t, "method", got, hub.AuthMethod{Scope: "device", Type: "x509"})
		})
	}
}

func TestVerifyCertificateOfModules(t *testing.T) {
	t.Parallel()
	root := x509test.Issue(t, "root", nil, x509test.AsCA)
	pool := x509.NewCertPool()
	pool.AddCert(root.Leaf)
	device, leaf, signed := x509test.Issue(t, "d", nil), x509test.Issue(t, "m", nil), x509test.Issue(t, "d/n", root)
	h := newHub(t, store.Memory(), func(o *hub.Options) { o.DeviceCAs = pool })
	if _, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: hub.Authentication{
		X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: x509test.Thumbprint(device)},
	}}); err != nil {
		t.Fatal(err)
	}
	for id, auth := range map[string]hub.Authentication{
		"m": {X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: sha256Of(leaf)}},
		"n": {Type: "certificateAuthority"},
		"k": {},
	} {
		if _, err := h.CreateModule(t.Context(), hub.Module{DeviceID: "d", ModuleID: id, Authentication: auth}); err != nil {
			t.Fatal(err)
		}
	}
	verify := func(module string, c *tls.Certificate) error {
		method, err := h.VerifyCertificate(hub.Target{DeviceID: "d", ModuleID: module}, []*x509.Certificate{c.Leaf})
		if err == nil {
			check(t, "method", method, hub.AuthMethod{Scope: "module", Type: "x509"})
		}
		return err
	}
	check(t, "thumbprint", verify("m", leaf), nil)
	check(t, "authority", verify("n", signed), nil)
	wantCode(t, "certificate of the device", verify("m", device), hub.CodeUnauthorized)
	wantCode(t, "certificate of another module", verify("m", signed), hub.CodeUnauthorized)
	wantCode(t, "name of the device", verify("n", x509test.Issue(t, "d", root)), hub.CodeUnauthorized)
	wantCode(t, "module with keys", verify("k", leaf), hub.CodeUnauthorized)
	wantCode(t, "unknown module", verify("x", leaf), hub.CodeUnauthorized)
	if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Status: "disabled"}, hub.AnyVersion); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "module of a disabled device", verify("m", leaf), hub.CodeUnauthorized)
}

func TestVerifyCertificateWithoutDevice(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	leaf := x509test.Issue(t, "d", nil)
	_, err := h.VerifyCertificate(hub.Target{DeviceID: "d"}, []*x509.Certificate{leaf.Leaf})
	wantCode(t, "unknown device", err, hub.CodeUnauthorized)
	if _, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: hub.Authentication{Type: "certificateAuthority"}}); err != nil {
		t.Fatal(err)
	}
	_, err = h.VerifyCertificate(hub.Target{DeviceID: "d"}, []*x509.Certificate{leaf.Leaf})
	wantCode(t, "hub without authorities", err, hub.CodeUnauthorized)
}

func TestAuthenticationRules(t *testing.T) {
	t.Parallel()
	digits := func(n int) *string { return new(strings.Repeat("aB", n/2)) }
	prints := func(typ string, primary, secondary *string) hub.Authentication {
		return hub.Authentication{Type: typ, X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: primary, SecondaryThumbprint: secondary}}
	}
	key := hub.SymmetricKey{PrimaryKey: "MDEyMzQ1Njc4OWFiY2RlZg=="}
	for name, tc := range map[string]struct {
		auth hub.Authentication
		want string // type, keys, thumbprints; empty: refused
	}{
		"nothing":                  {hub.Authentication{}, "sas 2 0"},
		"type in another case":     {hub.Authentication{Type: "CertificateAuthority"}, "certificateAuthority 0 0"},
		"one key":                  {hub.Authentication{SymmetricKey: key}, "sas 2 0"},
		"SHA-1":                    {prints("", digits(40), nil), "selfSigned 0 1"},
		"SHA-256, both":            {prints("selfSigned", digits(64), digits(64)), "selfSigned 0 2"},
		"secondary only":           {prints("", nil, digits(40)), "selfSigned 0 1"},
		"empty thumbprints":        {prints("", new(""), new("")), "sas 2 0"},
		"empty secondary":          {prints("", digits(40), new("")), "selfSigned 0 1"},
		"keys that aren't used":    {hub.Authentication{Type: "none", SymmetricKey: key}, "none 0 0"},
		"thumbprint not used":      {prints("sas", digits(40), nil), "sas 2 0"},
		"bad thumbprint not used":  {prints("certificateAuthority", new("x"), nil), "certificateAuthority 0 0"},
		"no thumbprint":            {hub.Authentication{Type: "selfSigned"}, ""},
		"38 digits":                {prints("", digits(38), nil), ""},
		"62 digits":                {prints("", digits(62), nil), ""},
		"no digits":                {prints("", new(strings.Repeat("x", 40)), nil), ""},
		"bad secondary":            {prints("", digits(40), new("x")), ""},
		"colons between the bytes": {prints("", new(strings.Repeat("ab:", 19)+"ab"), nil), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, err := newHub(t, store.Memory()).CreateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: tc.auth})
			if tc.want == "" {
				wantCode(t, "creation", err, hub.CodeArgumentInvalid)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			check(t, "authentication", describe(d.Authentication), tc.want)
		})
	}
}

// describe says the type, and how many keys and thumbprints there are.
func describe(a hub.Authentication) string {
	keys, prints := 0, 0
	for _, key := range []string{a.SymmetricKey.PrimaryKey, a.SymmetricKey.SecondaryKey} {
		if key != "" {
			keys++
		}
	}
	for _, p := range []*string{a.X509Thumbprint.PrimaryThumbprint, a.X509Thumbprint.SecondaryThumbprint} {
		if p != nil {
			prints++
		}
	}
	return fmt.Sprint(a.Type, " ", keys, " ", prints)
}

func TestUpdateOfAuthentication(t *testing.T) {
	t.Parallel()
	a, b := strings.Repeat("a", 40), strings.Repeat("b", 40)
	selfSigned := hub.Authentication{X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: &a, SecondaryThumbprint: &b}}
	keys := hub.SymmetricKey{PrimaryKey: "MDEyMzQ1Njc4OWFiY2RlZg==", SecondaryKey: "ZmVkY2JhOTg3NjU0MzIxMA=="}
	withKeys := hub.Authentication{SymmetricKey: keys}
	for name, tc := range map[string]struct {
		before, update hub.Authentication
		want           string
		same           bool // keys and thumbprints
	}{
		"keys stay":                        {withKeys, hub.Authentication{}, "sas 2 0", true},
		"keys stay with the type":          {withKeys, hub.Authentication{Type: "SAS"}, "sas 2 0", true},
		"other key stays":                  {withKeys, hub.Authentication{SymmetricKey: hub.SymmetricKey{PrimaryKey: keys.PrimaryKey}}, "sas 2 0", true},
		"new key":                          {withKeys, hub.Authentication{SymmetricKey: hub.SymmetricKey{PrimaryKey: keys.SecondaryKey}}, "sas 2 0", false},
		"thumbprints stay":                 {selfSigned, hub.Authentication{}, "selfSigned 0 2", true},
		"thumbprints stay with the type":   {selfSigned, hub.Authentication{Type: "selfSigned"}, "selfSigned 0 2", true},
		"one thumbprint replaces both":     {selfSigned, hub.Authentication{X509Thumbprint: hub.X509Thumbprint{PrimaryThumbprint: &b}}, "selfSigned 0 1", false},
		"authority stays":                  {hub.Authentication{Type: "certificateAuthority"}, hub.Authentication{}, "certificateAuthority 0 0", true},
		"none stays":                       {hub.Authentication{Type: "none"}, hub.Authentication{}, "none 0 0", true},
		"keys to thumbprints":              {withKeys, selfSigned, "selfSigned 0 2", false},
		"thumbprints to keys":              {selfSigned, hub.Authentication{Type: "sas"}, "sas 2 0", false},
		"thumbprints to keys without type": {selfSigned, withKeys, "sas 2 0", false},
		"thumbprints to an authority":      {selfSigned, hub.Authentication{Type: "certificateAuthority"}, "certificateAuthority 0 0", false},
		"keys to thumbprints without any":  {withKeys, hub.Authentication{Type: "selfSigned"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, store.Memory())
			before, err := h.CreateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: tc.before})
			if err != nil {
				t.Fatal(err)
			}
			after, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: tc.update}, hub.AnyVersion)
			if tc.want == "" {
				wantCode(t, "update", err, hub.CodeArgumentInvalid)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			check(t, "authentication", describe(after.Authentication), tc.want)
			same := before.Authentication.SymmetricKey == after.Authentication.SymmetricKey &&
				printsOf(before) == printsOf(after)
			check(t, "same keys", same, tc.same)
		})
	}
}

func printsOf(id hub.Identity) string {
	var all []string
	for _, p := range []*string{id.Authentication.X509Thumbprint.PrimaryThumbprint, id.Authentication.X509Thumbprint.SecondaryThumbprint} {
		if p != nil {
			all = append(all, *p)
		}
	}
	return strings.Join(all, " ")
}

// TestKeysOfDevicesWithCertificates looks at what tokens are checked against.
func TestKeysOfDevicesWithCertificates(t *testing.T) {
	t.Parallel()
	h := newHub(t, store.Memory())
	create(t, h, "d")
	for _, typ := range []string{"certificateAuthority", "none"} {
		if _, err := h.UpdateDevice(t.Context(), hub.Identity{DeviceID: "d", Authentication: hub.Authentication{Type: typ}}, hub.AnyVersion); err != nil {
			t.Fatal(err)
		}
		d, err := h.Device("d")
		if err != nil {
			t.Fatal(err)
		}
		check(t, typ, d.Keys.Primary+d.Keys.Secondary, "")
	}
}
