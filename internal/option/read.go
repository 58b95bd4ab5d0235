package option

import (
	"cmp"
	"errors"
	"fmt"
	"io"
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

// maxFile is the size of the largest file that ReadFile reads: larger than any bundle of
// certificates.
const maxFile = 4 << 20

// errTooSlow says that a file was not read in time.
var errTooSlow = errors.New("takes too long: it is on a file system that does not answer, or is not a plain file")

// How many reads of files are under way at a time is bounded: each has a thread, also
// while it hangs, and the runtime ends a process that has very many. A read that gets no
// place in time takes too long.
//
// A config has so many files; tenants, which clients name, may have any number. Those of
// the tenants of each credential have places of their own, so that no others are kept
// from being read by those that hang.
const (
	maxReads        = 512
	maxReadsOfGroup = 128
)

// places are where reads are under way: a value for each.
type places chan struct{}

// groups are the values that ReadInGroup has been called with.
var groups = struct {
	mu     sync.Mutex
	all    places // for values of no group
	byName map[string]places
	of     map[string]*groupOf // by value
}{all: make(places, maxReads), byName: make(map[string]places), of: make(map[string]*groupOf)}

// groupOf is the group of a value.
type groupOf struct {
	places places
	uses   int
}

// ReadInGroup has the files that values name read in places of that group, until end is
// called. A value that is in a group already stays there, whoever else reads it. A group
// outlives a config, as the reads do that hang.
func ReadInGroup(name string, values []string) (end func()) {
	groups.mu.Lock()
	defer groups.mu.Unlock()
	group := groups.byName[name]
	if group == nil {
		group = make(places, maxReadsOfGroup)
		groups.byName[name] = group
	}
	for _, value := range values {
		if groups.of[value] == nil {
			groups.of[value] = &groupOf{places: group}
		}
		groups.of[value].uses++
	}
	return sync.OnceFunc(func() {
		groups.mu.Lock()
		defer groups.mu.Unlock()
		for _, value := range values {
			if groups.of[value].uses--; groups.of[value].uses == 0 {
				delete(groups.of, value)
			}
		}
	})
}

// placesOf returns where the files of a value are read.
func placesOf(value string) places {
	groups.mu.Lock()
	defer groups.mu.Unlock()
	if group := groups.of[value]; group != nil {
		return group.places
	}
	return groups.all
}

// reads are those of files that have not ended.
var reads = struct {
	mu    sync.Mutex
	begun map[readOf]*read
}{begun: make(map[readOf]*read)}

// readOf is what is read of the files that a value names.
type readOf struct {
	what  string // empty: the value with its placeholders replaced
	value string
}

// read is the reading of the files that a value names. All who need it meanwhile wait
// for the same.
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
	return inTime(readOf{"", value}, readTimeout, func() (string, error) {
		if !filesExist(value) {
			return "", ErrNoValue
		}
		return caddy.NewReplacer().ReplaceOrErr(value, true, true)
	})
}

// FileValue returns the value that names the file at path.
func FileValue(path string) string { return "{file." + path + "}" }

// ReadFile returns the content of the file at path, if that takes no longer than
// patience; as long as for any value, if that is 0.
func ReadFile(path string, patience time.Duration) ([]byte, error) {
	content, err := inTime(readOf{"content", FileValue(path)}, cmp.Or(patience, readTimeout), func() (string, error) {
		file, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer file.Close()
		content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
		if err == nil && len(content) > maxFile {
			err = fmt.Errorf("%s is larger than 4 MiB", path)
		}
		return string(content), err
	})
	if errors.Is(err, errTooSlow) {
		err = fmt.Errorf("reading %s %w", path, err)
	}
	return []byte(content), err
}

// IsWorldReadable reports whether everyone on this machine may read the file at path, or
// what it leads to if it is a symbolic link; as far as that is known in time.
func IsWorldReadable(path string) bool {
	mode, err := inTime(readOf{"mode", FileValue(path)}, readTimeout, func() (string, error) {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&0o004 == 0 {
			return "", err
		}
		return "readable", nil
	})
	return err == nil && mode != ""
}

// inTime returns what is read, or errTooSlow if that takes longer than patience.
func inTime(of readOf, patience time.Duration, doRead func() (string, error)) (string, error) {
	r := reading(of, doRead)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.done:
		return r.value, r.err
	case <-timer.C:
		return "", errTooSlow
	}
}

// reading returns the read that is under way, or a new one.
func reading(of readOf, doRead func() (string, error)) *read {
	reads.mu.Lock()
	defer reads.mu.Unlock()
	before := reads.begun[of]
	if before != nil && time.Since(before.begun) < before.patience {
		return before
	}
	r := &read{begun: time.Now(), patience: readTimeout, done: make(chan struct{})}
	if before != nil {
		r.patience = min(2*before.patience, maxPatience)
	}
	reads.begun[of] = r
	wait := readTimeout
	go func() {
		r.value, r.err = placesOf(of.value).run(wait, doRead)
		reads.mu.Lock()
		defer reads.mu.Unlock()
		if reads.begun[of] == r {
			delete(reads.begun, of) // before anyone goes on: who asks after that gets what is there then
		}
		close(r.done)
	}()
	return r
}

// run returns what doRead returns, if there is a place for it within wait.
func (p places) run(wait time.Duration, doRead func() (string, error)) (string, error) {
	place := time.NewTimer(wait)
	defer place.Stop()
	select {
	case p <- struct{}{}:
		defer func() { <-p }()
		return doRead()
	case <-place.C:
		return "", errTooSlow
	}
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
