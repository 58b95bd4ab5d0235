package option

import (
	"errors"
	"io/fs"
	"os"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// readTimeout bounds how long a file is waited for. One that hangs is read anew
// from time to time, since it may have been replaced; less and less often, since
// each read that hangs has a thread.
var readTimeout = 5 * time.Second

const maxPatience = time.Hour

// errTooSlow says that a file was not read in time.
var errTooSlow = errors.New("reading takes too long")

// places bound how many reads of files are under way: each has a thread, also while
// it hangs, and the runtime ends a process that has very many. A read that gets no
// place in time takes too long.
var places = make(chan struct{}, 512)

// reads are those of files that have not ended, by the value that they are for.
var reads = struct {
	mu    sync.Mutex
	begun map[string]*read
}{begun: make(map[string]*read)}

// read is the reading of the files that a value names. All who need the value
// meanwhile wait for the same.
type read struct {
	begun    time.Time
	patience time.Duration // until another is begun

	done  chan struct{} // closed once these are set
	value string
	err   error
}

// replaceInTime returns value with its placeholders replaced, or errTooSlow.
func replaceInTime(value string) (string, error) {
	if !strings.Contains(value, "{file.") {
		return caddy.NewReplacer().ReplaceOrErr(value, true, true)
	}
	r := reading(value)
	timer := time.NewTimer(readTimeout)
	defer timer.Stop()
	select {
	case <-r.done:
		return r.value, r.err
	case <-timer.C:
		return "", errTooSlow
	}
}

// reading returns the read that is under way for value, or a new one.
func reading(value string) *read {
	reads.mu.Lock()
	defer reads.mu.Unlock()
	before := reads.begun[value]
	if before != nil && time.Since(before.begun) < before.patience {
		return before
	}
	r := &read{begun: time.Now(), patience: readTimeout, done: make(chan struct{})}
	if before != nil {
		r.patience = min(2*before.patience, maxPatience)
	}
	reads.begun[value] = r
	go func() {
		r.value, r.err = readFiles(value)
		reads.mu.Lock()
		defer reads.mu.Unlock()
		if reads.begun[value] == r {
			delete(reads.begun, value) // before anyone goes on: who asks after that gets what is there then
		}
		close(r.done)
	}()
	return r
}

// readFiles returns value with its placeholders replaced.
func readFiles(value string) (string, error) {
	place := time.NewTimer(readTimeout)
	defer place.Stop()
	select {
	case places <- struct{}{}:
		defer func() { <-places }()
	case <-place.C:
		return "", errTooSlow
	}
	if !filesExist(value) {
		return "", ErrNoValue
	}
	return caddy.NewReplacer().ReplaceOrErr(value, true, true)
}

// filePlaceholder matches a placeholder of a file.
var filePlaceholder = regexp.MustCompile(`\{file\.([^{}]+)\}`)

// filesExist reports whether the files are there that value has placeholders of.
// Caddy's replacer logs an error of each that is not, which may be as it should be:
// the file of a tenant that nobody knows, or of a secret that has been replaced.
func filesExist(value string) bool {
	for _, file := range filePlaceholder.FindAllStringSubmatch(value, -1) {
		if _, err := os.Stat(file[1]); errors.Is(err, fs.ErrNotExist) {
			return false
		}
	}
	return true
}
