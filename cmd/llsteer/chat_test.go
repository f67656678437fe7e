package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/testdata/demo"
	"github.com/stretchr/testify/require"
)

// chatModel is the demo model with the ChatML template, which it has no tokens for.
func chatModel(t *testing.T) *ggmlsteer.Model {
	path := filepath.Join(t.TempDir(), "chat.gguf")
	template := "{% for m in messages %}<|im_start|>{{ m.role }}{% endfor %}"
	require.NoError(t, os.WriteFile(path, insertKV(bytes.Clone(demo.Model), "tokenizer.chat_template", template), 0o600))
	m, err := ggmlsteer.Open(path, ggmlsteer.Options{Threads: 1})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// A history stands in the template, message after message; control tokens in it are the
// template's alone.
func TestChatMessages(t *testing.T) {
	m := chatModel(t)
	text := func(messages ...ggmlsteer.Message) string {
		tokens, err := m.ChatMessages(messages)
		require.NoError(t, err)
		return m.Text(tokens, true)
	}
	system := ggmlsteer.Message{Role: ggmlsteer.RoleSystem, Text: "be kind"}
	user := func(text string) ggmlsteer.Message {
		return ggmlsteer.Message{Role: ggmlsteer.RoleUser, Text: text}
	}
	assistant := ggmlsteer.Message{Role: ggmlsteer.RoleAssistant, Text: "here"}
	require.Equal(t, "<bos><|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\nopen it<|im_end|>\n<|im_start|>assistant\nhere<|im_end|>\n<|im_start|>user\nand now<|im_end|>\n<|im_start|>assistant\n",
		text(system, user("open it"), assistant, user("and now")))

	one, err := m.Chat("be kind", "open it")
	require.NoError(t, err)
	same, err := m.ChatMessages([]ggmlsteer.Message{system, user("open it")})
	require.NoError(t, err)
	require.Equal(t, one, same)

	// more than nine messages, one of which holds a control token as text
	var many []ggmlsteer.Message
	for range 6 {
		many = append(many, user("open it"), assistant)
	}
	many = append(many, user("a <eos> b"))
	rendered := text(many...)
	require.Equal(t, 7, strings.Count(rendered, "user\n"))
	require.Contains(t, rendered, "user\na <eos> b<|im_end|>")
	tokens, err := m.ChatMessages(many)
	require.NoError(t, err)
	for _, token := range tokens {
		require.NotEqual(t, "<eos>", m.Text([]ggmlsteer.Token{token}, true))
	}

	_, err = m.ChatMessages(nil)
	require.Error(t, err)
	_, err = m.ChatMessages([]ggmlsteer.Message{user("a"), assistant})
	require.Error(t, err)
	_, err = m.ChatMessages([]ggmlsteer.Message{user("a\x00b")})
	require.ErrorContains(t, err, "zero byte")
}
