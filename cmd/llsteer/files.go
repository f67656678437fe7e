package main

import (
	"errors"
	"io"
	"maps"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/llsteer/llsteer/loader"
)

// checkOutputs refuses, before any work is done, files that cannot be written,
// that are named twice or that are read, too. Keys are the flags; an empty path
// is an output that nobody asked for.
func checkOutputs(outputs map[string]string, inputs ...string) error {
	places := map[string]string{} // and the flag that named each
	for _, flag := range slices.Sorted(maps.Keys(outputs)) {
		path := outputs[flag]
		if path == "" {
			continue
		}
		if err := loader.CheckOutput(path); err != nil {
			return err
		}
		place := placeOf(path)
		if other, taken := places[place]; taken {
			return badInput("", "%s and %s name the same file, %s", other, flag, path)
		}
		places[place] = flag
		for _, input := range inputs {
			if input != demoName && placeOf(input) == place {
				return badInput("", "%s would overwrite %s, which is read", flag, path)
			}
		}
	}
	return nil
}

// placeOf is the file that a path leads to, links followed, whether or not it
// is there yet.
func placeOf(path string) string {
	folder, base := filepath.Split(path)
	if target, err := filepath.EvalSymlinks(path); err == nil {
		folder, base = filepath.Split(target)
	} else if target, err := filepath.EvalSymlinks(filepath.Clean(folder)); err == nil {
		folder = target
	}
	if absolute, err := filepath.Abs(folder); err == nil {
		folder = absolute
	}
	return filepath.Join(folder, base)
}

// reason is why a file could not be used, without the name of the system call.
func reason(err error) string {
	var number syscall.Errno
	if errors.As(err, &number) {
		return number.Error()
	}
	return err.Error()
}

// writeFile writes a whole file or none.
func writeFile(path string, data []byte) error {
	return loader.WriteFile(path, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}
