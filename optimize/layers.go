package optimize

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/llsteer/llsteer/loader"
)

// Layers names layers before the model, and so their number, is known: all of
// them, or a list.
type Layers struct {
	All  bool
	List []int
}

const (
	layersExpected = `expected a layer's number from 0 on, a list such as 3,7, a range such as 0-25, or all`
	// more blocks than any model has; keeps a mistyped range from filling the memory
	maxLayers = 10000
)

// ParseLayers reads "10", "3,7", "0-25" or "all". What it cannot read is an
// *InputError that says what was expected.
func ParseLayers(s string) (Layers, error) {
	if strings.TrimSpace(s) == "all" {
		return Layers{All: true}, nil
	}
	var list []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		first, errFirst := strconv.ParseUint(from, 10, 31)
		last, errLast := strconv.ParseUint(to, 10, 31)
		if errFirst != nil || errLast != nil || last < first || last >= maxLayers {
			return Layers{}, &loader.InputError{Message: fmt.Sprintf("%s, found %q", layersExpected, s)}
		}
		for l := first; l <= last; l++ {
			list = append(list, int(l))
		}
	}
	return Layers{List: list}, nil
}

// String is what ParseLayers reads.
func (l Layers) String() string {
	if l.All {
		return "all"
	}
	parts := make([]string, len(l.List))
	for i, layer := range l.List {
		parts[i] = strconv.Itoa(layer)
	}
	return strings.Join(parts, ",")
}

// Resolve returns the layers of a model with n blocks, ascending. It is an
// *InputError if there are none, or one is named twice or is not the model's.
func (l Layers) Resolve(n int) ([]int, error) {
	if l.All {
		all := make([]int, n)
		for i := range all {
			all[i] = i
		}
		return all, nil
	}
	if err := l.validate(); err != nil {
		return nil, err
	}
	list := slices.Sorted(slices.Values(l.List))
	if last := list[len(list)-1]; last >= n {
		return nil, &loader.InputError{Message: fmt.Sprintf("layer: there is no layer %d: this model has layers 0 to %d", last, n-1)}
	}
	return list, nil
}

// validate is Resolve as far as no model is needed.
func (l Layers) validate() error {
	if l.All {
		return nil
	}
	if len(l.List) == 0 {
		return &loader.InputError{Message: "layer: no layer is given", Hint: layersExpected}
	}
	list := slices.Sorted(slices.Values(l.List))
	for i, layer := range list {
		if layer < 0 {
			return &loader.InputError{Message: fmt.Sprintf("layer: %d is not a layer: they are counted from 0", layer)}
		}
		if i > 0 && layer == list[i-1] {
			return &loader.InputError{Message: fmt.Sprintf("layer: %d is named twice", layer)}
		}
	}
	return nil
}
