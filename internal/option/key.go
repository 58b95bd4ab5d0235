package option

import (
	"errors"
	"fmt"

	"github.com/caddy-egress/caddy-egress/tokenprovider"
)

// Key is the identifier and the secret of a client, as two options hold them. While
// the key is rotated there are several: a secret each, and as many identifiers or
// one for all.
type Key struct {
	IDName, SecretName string // of the options
	IDs, Secrets       tokenprovider.Values

	// Resolve returns what a value of the option name stands for.
	Resolve func(name, value string) (string, error)
}

// Validate returns an error that names the option which is missing or wrong.
func (k Key) Validate() error {
	switch {
	case len(k.IDs) == 0:
		return errors.New(k.IDName + " is required")
	case len(k.Secrets) == 0:
		return errors.New(k.SecretName + " is required")
	}
	return tokenprovider.CheckPaired(k.IDName, k.IDs, k.SecretName, k.Secrets)
}

// ResolveIDs returns what the identifiers stand for now; empty for one that has no
// value, since it may still have to come.
func (k Key) ResolveIDs() tokenprovider.Values {
	ids := make(tokenprovider.Values, len(k.IDs))
	for i, value := range k.IDs {
		ids[i], _ = k.Resolve(k.IDName, value) // Read says what is wrong
	}
	return ids
}

// Read returns identifier and secret as they are now, read together: those of the
// first pair that has values. If none has, the error is that of the first.
func (k Key) Read() (id string, secret tokenprovider.Secret, err error) {
	for i := range k.Secrets {
		id, value, failed := k.read(i)
		if failed == nil {
			return id, tokenprovider.NewSecret(value), nil
		}
		if err == nil {
			err = failed
		}
	}
	return "", tokenprovider.Secret{}, err
}

func (k Key) read(i int) (id, secret string, err error) {
	if id, err = k.Resolve(k.IDName, k.IDs.At(i)); err != nil {
		return "", "", err
	}
	secret, err = k.Resolve(k.SecretName, k.Secrets[i])
	return id, secret, err
}

// SecretOptions is what a provider returns of that name: the second secret and
// those after it are numbered.
func (k Key) SecretOptions() map[string]string {
	options := make(map[string]string, len(k.Secrets))
	for i, value := range k.Secrets {
		name := k.SecretName
		if i > 0 {
			name = fmt.Sprintf("%s %d", name, i+1)
		}
		options[name] = value
	}
	return options
}
