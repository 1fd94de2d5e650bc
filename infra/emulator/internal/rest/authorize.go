package rest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hubjobs/hubjobs/infra/emulator/internal/hub"
	"github.com/hubjobs/hubjobs/infra/emulator/internal/sas"
)

// admit checks what every request must have.
func (h *Handler) admit(r *http.Request, to *route, segments []string, names named) (hub.AuthMethod, error) {
	if v := r.URL.Query().Get("api-version"); !apiVersion.MatchString(v) {
		return hub.AuthMethod{}, hub.Errorf(hub.CodeArgumentInvalid, "query parameter api-version must be a date such as 2021-04-12")
	}
	if to.ofDevice() && r.Header.Get("Authorization") == "" && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return h.hub.VerifyCertificate(names.target(), r.TLS.PeerCertificates)
	}
	claims, err := h.authorize(r, to, segments)
	return hub.ByToken(claims), err
}

// ofDevice tells the routes that devices and modules use themselves.
func (r *route) ofDevice() bool { return slices.Equal(r.anyOf, []sas.Permission{sas.DeviceConnect}) }

// authorize checks the request's token for the permission and the resource.
func (h *Handler) authorize(r *http.Request, to *route, segments []string) (sas.Claims, error) {
	token := r.Header.Get("Authorization")
	switch {
	case token == "":
		return sas.Claims{}, hub.Errorf(hub.CodeUnauthorizedAccess, "header Authorization is missing")
	case !strings.HasPrefix(token, sas.Scheme+" "):
		return sas.Claims{}, hub.Errorf(hub.CodeUnauthorizedAccess, "the emulator takes shared access signatures only")
	}
	claims, err := h.verifier.Verify(token, h.hub.Name()+"/"+strings.Join(segments, "/"))
	if err != nil {
		if sas.Refused(err) {
			err = hub.Errorf(hub.CodeUnauthorizedAccess, "%s", err)
		}
		return sas.Claims{}, err
	}
	if !slices.ContainsFunc(to.anyOf, claims.Permissions.Has) {
		return sas.Claims{}, hub.Errorf(hub.CodeUnauthorizedAccess, "%s has %s and needs %s", holder(claims), claims.Permissions, to.anyOf[0])
	}
	return claims, nil
}

func holder(c sas.Claims) string {
	if c.Policy != "" {
		return fmt.Sprintf("policy %q", c.Policy)
	}
	return hub.Target{DeviceID: c.DeviceID, ModuleID: c.ModuleID}.String()
}
