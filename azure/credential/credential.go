package credential

import (
	"crypto/x509"
	"fmt"
	"os"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/hubjobs/hubjobs/job"
)

// Azure returns the credential for services in Azure. With a client ID it is the managed identity of that ID; without
// one it is the default chain of azidentity: environment, workload identity, managed identity, the developer's own log-in.
func Azure(clientID string) (azcore.TokenCredential, error) {
	var (
		cred azcore.TokenCredential
		err  error
	)
	if clientID != "" {
		cred, err = azidentity.NewManagedIdentityCredential(
			&azidentity.ManagedIdentityCredentialOptions{ID: azidentity.ClientID(clientID)})
	} else {
		cred, err = azidentity.NewDefaultAzureCredential(nil)
	}
	if err != nil {
		return nil, &job.Error{Op: "find an Azure credential", Kind: job.ErrUnauthorized, Err: err}
	}
	return cred, nil
}

// RootCAs reads certificate authorities from a PEM file. Without a file it returns nil: those of the system.
func RootCAs(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, &job.Error{Op: "read the CA file", Kind: job.ErrInvalid, Err: err}
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, &job.Error{Op: "read the CA file", Kind: job.ErrInvalid,
			Err: fmt.Errorf("%s holds no certificate in PEM form", file)}
	}
	return pool, nil
}
