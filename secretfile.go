package egress

import (
	"maps"
	"runtime"
	"slices"
	"strings"

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
	warnOfOption(logger.Warn, name, value)
}

// warner logs a warning.
type warner func(message string, fields ...zap.Field)

// warnOfFiles warns where everyone on this machine may read the files of a provider's
// secrets.
func warnOfFiles(warn warner, provider tokenprovider.Provider) {
	for name, value := range provider.SecretOptions() {
		warnOfOption(warn, name, value)
	}
}

// warnOfOption warns where everyone on this machine may read the file of the secret that
// an option has as its value.
func warnOfOption(warn warner, name, value string) {
	if path, ok := secretFile(value); ok {
		warnOfFile(warn, name, path)
	}
}

// warnOfFile warns where everyone on this machine may read the file at path, of the
// secret that an option has.
func warnOfFile(warn warner, name, path string) {
	if isOpenFile(path) {
		warn(openFileMessage, zap.String("option", name), zap.String("file", path))
	}
}

const openFileMessage = "everyone on this machine may read the file of a secret; chmod o-r"

// isOpenFile reports whether everyone on this machine may read the file at path, or
// what it leads to if it is a symbolic link.
func isOpenFile(path string) bool {
	if runtime.GOOS == "windows" { // where modes say nothing about that
		return false
	}
	return option.IsWorldReadable(path) // one that is not there has failed already
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
