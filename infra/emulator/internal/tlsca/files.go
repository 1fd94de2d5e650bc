package tlsca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// files keeps pairs as PEM in a directory; with an empty dir it keeps nothing.
type files struct {
	dir string
}

// load reads a pair. A missing certificate or key means not found: the other
// half of a pair is of no use.
func (f files) load(certFile, keyFile string) (p pair, found bool, err error) {
	if f.dir == "" {
		return pair{}, false, nil
	}
	certPath, keyPath := filepath.Join(f.dir, certFile), filepath.Join(f.dir, keyFile)
	certDER, err := readPEM(certPath, "CERTIFICATE")
	if errors.Is(err, fs.ErrNotExist) {
		return pair{}, false, nil
	}
	if err != nil {
		return pair{}, false, err
	}
	keyDER, err := readPEM(keyPath, "PRIVATE KEY")
	if errors.Is(err, fs.ErrNotExist) {
		return pair{}, false, nil
	}
	if err != nil {
		return pair{}, false, err
	}
	if p, err = parsePair(certDER, keyDER); err != nil {
		return pair{}, false, fmt.Errorf("%s and %s: %w; delete both to have them made anew", certPath, keyPath, err)
	}
	return p, true, nil
}

func parsePair(certDER, keyDER []byte) (pair, error) {
	cert, err := x509.ParseCertificate(certDER)
	if err != nil {
		return pair{}, fmt.Errorf("certificate is damaged: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyDER)
	if err != nil {
		return pair{}, errors.New("key is damaged")
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return pair{}, errors.New("key can't sign")
	}
	public, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || !public.Equal(key.Public()) {
		return pair{}, errors.New("key and certificate don't belong together")
	}
	return pair{cert: cert, key: key}, nil
}

func readPEM(path, blockType string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != blockType {
		return nil, fmt.Errorf("%s: no PEM block %q in it; delete it to have it made anew", path, blockType)
	}
	return block.Bytes, nil
}

// save writes a pair. The old certificate goes first and the new one comes last,
// so that a crash in between leaves a pair that load doesn't find, rather than
// two halves that don't belong together.
func (f files) save(certFile, keyFile string, p pair) error {
	if f.dir == "" {
		return nil
	}
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(f.dir, certFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := replace(filepath.Join(f.dir, keyFile), key, 0o600); err != nil {
		return err
	}
	return replace(filepath.Join(f.dir, certFile), encodeCertificate(p.cert), 0o644)
}

func encodeCertificate(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// replace writes a file so that readers see the old content or all of the new.
func replace(path string, data []byte, mode fs.FileMode) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name()) // the error that counts is the first one
		}
	}()
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}
