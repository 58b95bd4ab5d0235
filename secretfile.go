package egress

import (
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-egress/caddy-egress/internal/option"
	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// warnOfSecrets warns of the secrets of a provider that others can read.
func warnOfSecrets(logger *zap.Logger, provider tokenprovider.Provider) {
	options := provider.SecretOptions()
	for _, name := range slices.Sorted(maps.Keys(options)) {
		warnOfSecret(logger, name, options[name])
	}
}

// warnOfSecret warns where the secret that an option has as its value is written
// in the config itself, where the admin API, config backups and `caddy adapt` show
// it, and where everyone on this machine may read its file.
func warnOfSecret(logger *zap.Logger, name, value string) {
	if value != "" && !option.IsPlaceholder(strings.ReplaceAll(value, option.Tenant, "tenant")) {
		logger.Warn("a secret is written in the config itself; give it as {env.NAME} or {file./path}", zap.String("option", name))
	}
	if path, ok := secretFile(value); ok {
		warnOfFile(logger, name, path)
	}
}

// warnOfFile warns where everyone on this machine may read the file at path, of the
// secret that an option has.
func warnOfFile(logger *zap.Logger, name, path string) {
	if isOpenFile(path) {
		logger.Warn(openFileMessage, zap.String("option", name), zap.String("file", path))
	}
}

const openFileMessage = "everyone on this machine may read the file of a secret; chmod o-r"

// warnOfOpenFile warns of a secret of a tenant in a file that everyone on this machine
// may read. Those of many tenants may be like that: leftOut says how many there were.
func (ts *tenants) warnOfOpenFile(credential string, provider tokenprovider.Provider) {
	for name, value := range provider.SecretOptions() {
		path, ok := secretFile(value)
		if !ok || !isOpenFile(path) {
			continue
		}
		if leftOut, ok := ts.warned.next(time.Now()); ok {
			ts.app.logger.Warn(openFileMessage, zap.String("credential", credential),
				zap.String("option", name), zap.String("file", path), zap.Int64("left_out", leftOut))
		}
	}
}

// isOpenFile reports whether everyone on this machine may read the file at path, or
// what it leads to if it is a symbolic link.
func isOpenFile(path string) bool {
	if runtime.GOOS == "windows" { // where modes say nothing about that
		return false
	}
	info, err := os.Stat(path) // one that is not there has failed already
	return err == nil && info.Mode().Perm()&0o004 != 0
}

// secretFile returns the path of a value that is {file./path} and nothing else.
func secretFile(value string) (path string, ok bool) {
	path, ok = strings.CutPrefix(value, "{file.")
	if !ok {
		return "", false
	}
	path, ok = strings.CutSuffix(path, "}")
	return path, ok && !strings.ContainsAny(path, "{}")
}
