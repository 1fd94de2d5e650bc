package temporal

import (
	"fmt"
	"os"

	"go.temporal.io/server/common/authorization"
	"go.temporal.io/server/common/cluster"
	"go.temporal.io/server/common/config"
	"go.temporal.io/server/common/dynamicconfig"
	"go.temporal.io/server/common/log"
	sqliteplugin "go.temporal.io/server/common/persistence/sql/sqlplugin/sqlite"
	"go.temporal.io/server/temporal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	clusterName = "active"
	disabled    = "disabled"
)

// newServer builds a server that is configured but not started.
func newServer(opts Options, addrs addresses) (temporal.Server, error) {
	authorizer := authorization.NewNoopAuthorizer()
	claims := authorization.NewNoopClaimMapper()
	return temporal.NewServer(
		temporal.WithConfig(serverConfig(opts, addrs)),
		temporal.ForServices(temporal.DefaultServices),
		temporal.WithStaticHosts(addrs.hosts()),
		temporal.WithLogger(serverLogger(opts.Logger)),
		temporal.WithDynamicConfigClient(dynamicConfig()),
		temporal.WithAuthorizer(authorizer),
		temporal.WithClaimMapper(func(*config.Config) authorization.ClaimMapper { return claims }),
	)
}

func serverConfig(opts Options, addrs addresses) *config.Config {
	return &config.Config{
		Services:            addrs.services(),
		PublicClient:        config.PublicClient{HostPort: addrs.client},
		DCRedirectionPolicy: config.DCRedirectionPolicy{Policy: "noop"},
		Persistence: config.Persistence{
			DefaultStore:     sqliteplugin.PluginName,
			VisibilityStore:  sqliteplugin.PluginName,
			NumHistoryShards: 1, // one writer at a time anyway: more shards would only queue for SQLite
			DataStores:       map[string]config.DataStore{sqliteplugin.PluginName: {SQL: storeConfig(opts)}},
		},
		ClusterMetadata: &cluster.Config{
			FailoverVersionIncrement: 10,
			MasterClusterName:        clusterName,
			CurrentClusterName:       clusterName,
			ClusterInformation: map[string]cluster.ClusterInformation{
				clusterName: {Enabled: true, InitialFailoverVersion: 1, RPCAddress: addrs.client},
			},
		},
		Archival: config.Archival{
			History:    config.HistoryArchival{State: disabled},
			Visibility: config.VisibilityArchival{State: disabled},
		},
		NamespaceDefaults: config.NamespaceDefaults{Archival: config.ArchivalNamespaceDefaults{
			History:    config.HistoryArchivalNamespaceDefaults{State: disabled},
			Visibility: config.VisibilityArchivalNamespaceDefaults{State: disabled},
		}},
	}
}

// dynamicConfig holds the settings that differ from the server's defaults. Limits are not among them, so that
// what fails in production fails here as well.
func dynamicConfig() dynamicconfig.Client {
	return dynamicconfig.StaticClient{
		// The check reports the version to the vendor.
		dynamicconfig.EnableServerVersionCheck.Key(): false,
		// A search attribute can be used as soon as it is registered, not a minute later.
		dynamicconfig.ForceSearchAttributesCacheRefreshOnRead.Key(): true,
		// Four partitions would spread the few tasks of one machine so thin that a poll waits at an empty one.
		dynamicconfig.MatchingNumTaskqueueReadPartitions.Key():  1,
		dynamicconfig.MatchingNumTaskqueueWritePartitions.Key(): 1,
	}
}

func serverLogger(logger *zap.Logger) log.Logger {
	return log.NewZapLogger(logger.WithOptions(
		zap.IncreaseLevel(zap.ErrorLevel),
		zap.WithFatalHook(fatalHook{}),
	))
}

// fatalHook says on the standard error stream why the server ends the process. The log is likely to be a file that
// nobody has open.
type fatalHook struct{}

// OnWrite implements [zapcore.CheckWriteHook].
func (fatalHook) OnWrite(entry *zapcore.CheckedEntry, fields []zapcore.Field) {
	reason := ""
	for _, field := range fields {
		if err, ok := field.Interface.(error); ok {
			reason = ": " + err.Error()
		}
	}
	fmt.Fprintf(os.Stderr, "embedded Temporal server: %s%s\n", entry.Message, reason)
	os.Exit(1)
}
