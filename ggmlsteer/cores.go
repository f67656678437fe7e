package ggmlsteer

import (
	"os"
	"path/filepath"
	"runtime"
)

// physicalCores is the number of cores that this process may use, hyperthreads
// counted once: matrix products gain nothing from them.
func physicalCores() int {
	cores := map[string]bool{}
	files, _ := filepath.Glob("/sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list")
	for _, file := range files {
		if siblings, err := os.ReadFile(file); err == nil {
			cores[string(siblings)] = true
		}
	}
	if n := len(cores); n > 0 && n < runtime.NumCPU() {
		return n
	}
	return runtime.NumCPU()
}
