package iothub

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/hubjobs/hubjobs/azure/credential"
)

// scope is what a Microsoft Entra token for any hub is asked for
// (IoT Hub docs, "Control access to IoT Hub by using Microsoft Entra ID").
const scope = "https://iothubs.azure.net/.default"

// signatureLife is how long a shared access signature is valid; it is replaced when a quarter of that is left.
const signatureLife = time.Hour

// authenticator proves who the client is, over HTTPS and over AMQP.
type authenticator interface {
	hostName() string
	httpPolicy() policy.Policy
	// cbsToken returns the claim to put on an AMQP connection. It may take a call to the identity provider.
	cbsToken(context.Context) (cbsToken, error)
}

// policyKey authenticates with the key of a shared access policy.
type policyKey struct {
	hub  credential.Hub
	life time.Duration // of a signature

	mu      sync.Mutex
	token   string
	expires time.Time
}

func (k *policyKey) hostName() string          { return k.hub.HostName }
func (k *policyKey) httpPolicy() policy.Policy { return k }

// signature returns a shared access signature with enough time left.
func (k *policyKey) signature(now time.Time) (string, time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.expires.Sub(now) > k.life/4 {
		return k.token, k.expires, nil
	}
	expires := now.Add(k.life).Truncate(time.Second) // which is how a signature says it
	token, err := k.hub.Token(expires)
	if err != nil {
		return "", time.Time{}, err
	}
	k.token, k.expires = token, expires
	return token, expires, nil
}

// Do puts the signature on a request. It implements policy.Policy.
func (k *policyKey) Do(req *policy.Request) (*http.Response, error) {
	token, _, err := k.signature(time.Now())
	if err != nil {
		return nil, err
	}
	req.Raw().Header.Set("Authorization", token)
	return req.Next()
}

// cbsToken has the type and the audience that azure-iothub for Node uses (lib/amqp.ts).
func (k *policyKey) cbsToken(context.Context) (cbsToken, error) {
	token, expires, err := k.signature(time.Now())
	if err != nil {
		return cbsToken{}, err
	}
	return cbsToken{kind: "servicebus.windows.net:sastoken", audience: k.hub.HostName, value: token, expires: expires}, nil
}

// identity authenticates with Microsoft Entra tokens.
type identity struct {
	host string
	cred azcore.TokenCredential
}

func (i *identity) hostName() string { return i.host }

func (i *identity) httpPolicy() policy.Policy {
	return runtime.NewBearerTokenPolicy(i.cred, []string{scope}, nil)
}

// cbsToken has the type and the audience that the service client for .NET uses (IotHubTokenCredentialProperties).
func (i *identity) cbsToken(ctx context.Context) (cbsToken, error) {
	t, err := i.cred.GetToken(ctx, policy.TokenRequestOptions{Scopes: []string{scope}})
	if err != nil {
		return cbsToken{}, err
	}
	return cbsToken{kind: "Bearer", audience: "amqps://" + i.host + ":5671/", value: "Bearer " + t.Token, expires: t.ExpiresOn}, nil
}
