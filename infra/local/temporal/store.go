package temporal

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"go.temporal.io/server/common/config"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/schema/sqlite"
	"google.golang.org/protobuf/types/known/durationpb"
)

// ErrSchema says that a database file was made by another version of the server.
var ErrSchema = errors.New("database of another Temporal version")

// prepareStore creates the schema where it is missing and registers the namespaces. Both happen before the server
// starts, because a running one notices a new namespace only after a while.
func prepareStore(opts Options) error {
	store := storeConfig(opts)
	if opts.File != "" {
		if err := ensureSchema(opts.File, store); err != nil {
			return fmt.Errorf("database %s: %w", opts.File, err)
		}
	}
	namespaces := make([]*sqlite.NamespaceConfig, 0, len(opts.Namespaces))
	for _, name := range opts.Namespaces {
		namespace, err := sqlite.NewNamespaceConfig(clusterName, name, false, nil)
		if err != nil {
			return fmt.Errorf("namespace %q: %w", name, err)
		}
		namespace.Detail.Config.Retention = durationpb.New(opts.Retention)
		namespaces = append(namespaces, namespace)
	}
	if err := sqlite.CreateNamespaces(store, namespaces...); err != nil {
		return fmt.Errorf("register Temporal namespaces: %w", err)
	}
	return nil
}

// storeConfig is how the server opens its database.
func storeConfig(opts Options) *config.SQL {
	if opts.File == "" {
		return &config.SQL{
			PluginName:        sqliteplugin.PluginName,
			DatabaseName:      opts.memoryName,
			ConnectAttributes: map[string]string{"mode": "memory", "cache": "shared"},
		}
	}
	return &config.SQL{
		PluginName:   sqliteplugin.PluginName,
		DatabaseName: opts.File,
		ConnectAttributes: map[string]string{
			"mode":         "rwc",
			"journal_mode": "wal",
			// In WAL mode a killed process loses nothing of what the server acknowledged. A power cut may lose the last
			// moments, though not the database (SQLite docs: PRAGMA synchronous). "full" would keep those as well, but
			// then each commit waits for the disk, and where that is busy for long the server's transactions run out of
			// their time.
			"synchronous": "normal",
		},
	}
}

// ensureSchema creates the tables of a new database. They are complete only when the file beside the database
// says so; a database without it was cut off while its tables were made, holds nothing yet, and is made anew.
func ensureSchema(file string, store *config.SQL) error {
	marker := file + ".schema"
	found, err := os.ReadFile(marker)
	switch {
	case err == nil:
		return checkSchema(strings.TrimSpace(string(found)))
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(file + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := sqlite.SetupSchema(store); err != nil {
		return err
	}
	return os.WriteFile(marker, []byte(sqlite.Version+"\n"), 0o600)
}

func checkSchema(found string) error {
	if found != sqlite.Version {
		return fmt.Errorf("%w: it has schema %s and this server needs %s; start with another file", ErrSchema, found, sqlite.Version)
	}
	return nil
}
