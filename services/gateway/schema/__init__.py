"""The OpenAPI document of the wire. `synod.codec` is what reads bodies; tests hold the two together.

records     JSON Schema of what travels
examples    bodies that a reader can copy
operations  what each path takes and gives
"""
