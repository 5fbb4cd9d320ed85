// Real clients of JavaScript against a server, as python_clients.py: node js_clients.mjs URL MODEL
import OpenAI from 'openai'
import { readFileSync } from 'node:fs'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { createOpenAI } from '@ai-sdk/openai'
import { generateText, streamText, embedMany, tool, jsonSchema, Output } from 'ai'

const [url, model] = process.argv.slice(2)
const ask = 'What is the weather in Paris?'
const messages = [{ role: 'user', content: ask }]
const parameters = { type: 'object', properties: { city: { type: 'string', maxLength: 20 } },
  required: ['city'], additionalProperties: false }
const named = { name: 'get_weather', description: 'Weather of a city', parameters }
const settings = { baseURL: url + '/v1', apiKey: 'none' }
const version = name => JSON.parse(readFileSync(`node_modules/${name}/package.json`)).version
const check = (value, what) => { if (!value) throw new Error(what ?? 'nothing came') }

const openai = new OpenAI({ ...settings, maxRetries: 0 })
const compatible = createOpenAICompatible({ ...settings, name: 'edgeft', includeUsage: true,
  supportsStructuredOutputs: true })
const call = { model: compatible(model), prompt: ask, maxOutputTokens: 100, maxRetries: 0 }
const city = jsonSchema(parameters)
const tools = { get_weather: tool({ description: 'Weather of a city', inputSchema: city }) }

const clients = {
  openai: {
    chat: async () => check((await openai.chat.completions.create(
      { model, messages, max_tokens: 40 })).choices[0].message.content),
    stream: async () => {
      let text = ''
      for await (const chunk of await openai.chat.completions.create(
        { model, messages, max_tokens: 40, stream: true })) text += chunk.choices[0]?.delta.content ?? ''
      check(text)
    },
    schema: async () => {
      const form = { type: 'json_schema', json_schema: { name: 'city', schema: parameters, strict: true } }
      const done = await openai.chat.completions.create(
        { model, messages, max_tokens: 100, response_format: form })
      check('city' in JSON.parse(done.choices[0].message.content))
    },
    tools: async () => {
      const done = await openai.chat.completions.create({ model, messages, max_tokens: 100,
        tools: [{ type: 'function', function: named }], tool_choice: 'required' })
      check('city' in JSON.parse(done.choices[0].message.tool_calls[0].function.arguments))
    },
    embeddings: async () => check((await openai.embeddings.create(
      { model, input: ['a', 'b'] })).data.length === 2),
    responses: async () => {
      check((await openai.responses.create({ model, input: ask, max_output_tokens: 40 })).output_text)
      const kinds = []
      for await (const event of await openai.responses.create(
        { model, input: ask, max_output_tokens: 40, stream: true })) kinds.push(event.type)
      check(kinds.includes('response.output_text.delta'), kinds.join())
    },
  },
  ai: {
    chat: async () => check((await generateText(call)).text),
    stream: async () => {
      let text = ''
      const stream = streamText(call)
      for await (const part of stream.textStream) text += part
      check(text && (await stream.usage).outputTokens)
    },
    schema: async () => check('city' in (await generateText(
      { ...call, output: Output.object({ schema: city }) })).output),
    tools: async () => check('city' in (await generateText(
      { ...call, tools, toolChoice: 'required' })).toolCalls[0].input),
    embeddings: async () => check((await embedMany(
      { model: compatible.textEmbeddingModel(model), values: ['a', 'b'] })).embeddings.length === 2),
    responses: async () => check((await generateText(
      { ...call, model: createOpenAI(settings)(model) })).text),
  },
}

for (const [client, features] of Object.entries(clients)) {
  for (const [feature, test] of Object.entries(features)) {
    let error = ''
    try { await test() } catch (problem) { error = `${problem.name}: ${problem.message}`.slice(0, 300) }
    const line = { client: `${client} (npm)`, version: version(client), feature, error }
    console.log(JSON.stringify(line))
  }
}
