package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/llsteer/llsteer/optimize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (p *program) activations() *cobra.Command {
	var model modelFlags
	var steer, prompts []string
	var layer, out string
	cmd := &cobra.Command{
		Use:   "activations -m MODEL [-s FILE[:STRENGTH]]... -p TEXT --layer LAYERS -o FILE.npy",
		Short: "the residual stream at layers, steered or not, for numpy",
		Long: `Writes the residual stream at layers, as their blocks read it, for every token of a
text, as an array of float32 that numpy.load reads: layers × tokens × width, or
tokens × width for one layer. A steering changes the stream at its own layer and at
those above; layers below are as without it.`,
		Example: `  llsteer activations -m demo -p "When you open the program," --layer 1,3 -o stream.npy`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := p.onlyText("--prompt", prompts)
			if err != nil {
				return err
			}
			switch {
			case layer == "":
				return badInput("10, 3,7, 0-25 or all", "--layer is missing")
			case out == "":
				return badInput("", "--out is missing")
			}
			layers, err := optimize.ParseLayers(layer)
			if err != nil {
				return fmt.Errorf("--layer: %w", err)
			}
			if err := checkOutputs(map[string]string{"--out": out}, model.path); err != nil {
				return err
			}
			m, active, err := p.openSteered(cmd.Context(), &model, steer, nil)
			if err != nil {
				return err
			}
			defer m.Close()
			chosen, err := layers.Resolve(m.Info().Layers)
			if err != nil {
				return fmt.Errorf("--layer: %w", err)
			}
			tokens, err := model.promptTokens(m, text)
			if err != nil {
				return err
			}
			if err := model.fits(m, "the text", len(tokens)); err != nil {
				return err
			}
			x, err := m.Activations(cmd.Context(), tokens, chosen, active...)
			if err != nil {
				return err
			}
			shape := []int{len(chosen), len(tokens), m.Info().Embd}
			if len(chosen) == 1 {
				shape = shape[1:]
			}
			if err := writeNPY(out, shape, slices.Concat(x...)); err != nil {
				return err
			}
			if p.json {
				return p.printJSON(struct {
					File   string  `json:"file"`
					Type   string  `json:"dtype"`
					Shape  []int   `json:"shape"`
					Layers []int   `json:"layers"`
					Tokens []token `json:"tokens"`
				}{out, "float32", shape, chosen, tokensOf(m, tokens)})
			}
			return p.print(fmt.Sprintf("%s: float32 of %s, %s\n", out, timesText(shape), map[bool]string{
				true: "tokens × width", false: "layers × tokens × width"}[len(shape) == 2]))
		},
	}
	addFlags(cmd, "Text", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&prompts, "prompt", "p", nil, "the `TEXT`; @FILE reads a file, @- standard input, @@ is an @ (required)")
	})
	addFlags(cmd, "Activations", func(flags *pflag.FlagSet) {
		addSteer(flags, &steer)
		flags.StringVar(&layer, "layer", "", "`LAYERS` at whose input they are, from 0: 10, 3,7, 0-25 or all (required)")
		flags.StringVarP(&out, "out", "o", "", "`FILE` to write, as numpy's .npy (required)")
		completeFiles(flags, "out", "npy")
	})
	model.add(cmd)
	return cmd
}

// timesText is a shape for people: 2 × 9 × 256.
func timesText(shape []int) string {
	return strings.Trim(strings.Join(strings.Fields(fmt.Sprint(shape)), " × "), "[]")
}
